"""A Ray to run on, never an open one."""

import contextlib
import logging
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
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # drive.py has its own
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # they go to the records and to error_N.txt
    "TUNE_GLOBAL_CHECKPOINT_S": "1e9",  # nobody reads Tune's snapshots, and each writes all trials
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

        # at the end it would list, as errors, all trials that are not simply terminated
        logging.getLogger("ray.tune.tune").setLevel(logging.CRITICAL)
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
    token.parent.mkdir(mode=0o700, exist_ok=True)
    token.parent.chmod(0o700)
    if not token.exists():
        new = token.with_name(f".{token.name}.{secrets.token_hex(4)}")
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as f:
            f.write(secrets.token_hex(32))
        with contextlib.suppress(FileExistsError):  # another driver was faster, and its token is in use
            os.link(new, token)
        new.unlink()
    token.chmod(0o600)
