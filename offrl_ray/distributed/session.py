"""A Ray to run on, never an open one."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

SETTINGS = {
    "RAY_AUTH_MODE": "token",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
}


@contextlib.contextmanager
def ray_session(address: str, namespace: str) -> Iterator[None]:
    """A local Ray of this machine's cores, or a running one ("auto"), with token authentication.

    Ray reads its settings when it is imported, so nothing may import it before.
    """
    for key, value in SETTINGS.items():
        os.environ.setdefault(key, value)
    mask = os.umask(0o077)  # the token and the session's folder are for this user alone
    try:
        _ensure_token()
        import ray

        ray.init(address, namespace=namespace, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    finally:
        os.umask(mask)
    try:
        yield
    finally:
        ray.shutdown()


def _ensure_token() -> None:
    if "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ:
        return
    token = Path.home() / ".ray" / "auth_token"
    token.parent.mkdir(exist_ok=True)
    if not token.exists():
        token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
