"""A Ray to run on, never an open one."""

import contextlib
import logging
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from offrl_ray.distributed import address as addresses
from offrl_ray.errors import UsageError

SETTINGS = {
    "RAY_AUTH_MODE": "token",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # draining.py has its own
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # they go to the records and to error_N.txt
    "TUNE_GLOBAL_CHECKPOINT_S": "1e9",  # nobody reads Tune's snapshots, and each writes all trials
}
RAY = "ray"  # inside: Ray opens the folder that it is given to all
SOCKET_ROOM = addresses.LONGEST - len(f"/{addresses.SOCKET}.10")
OLD_SECONDS = 24 * 3600


def apply_settings() -> None:
    """Ray reads them when it is imported."""
    for key, value in SETTINGS.items():
        os.environ.setdefault(key, value)


def locate(address: str) -> addresses.Found:
    """Which Ray an `--address` stands for. Raises UsageError if RAY_ADDRESS is none, or RAY_AUTH_MODE no mode."""
    mode = os.environ.get("RAY_AUTH_MODE", "").strip() or "token"
    if mode not in ("token", "disabled"):  # Ray takes any other word for an open cluster
        raise UsageError([f"RAY_AUTH_MODE must be token, or disabled for a Ray open to everybody, but is {mode!r}"])
    os.environ["RAY_AUTH_MODE"] = mode
    apply_settings()
    return addresses.find(address)


@contextlib.contextmanager
def ray_session(found: addresses.Found, namespace: str) -> Iterator[str]:
    """The Ray that was located, or one of this machine's cores, with token authentication. Yields a line about it.

    Nothing may import Ray before it is located. Raises UsageError where none may be joined.
    """
    how: dict[str, Any] = {"namespace": namespace, "log_to_driver": False, "logging_level": "ERROR"}
    mask = os.umask(0o077)  # the token and the session's folder are for this user alone
    try:
        if found.address == addresses.LOCAL:
            _ensure_token()
            how |= {"include_dashboard": False, "_temp_dir": str(private_folder())}
        else:
            addresses.check(found.address)
        import ray

        # at the end it would list, as errors, all trials that are not simply terminated
        logging.getLogger("ray.tune.tune").setLevel(logging.CRITICAL)
        with _apart():
            context = ray.init(found.address, **how)
    finally:
        os.umask(mask)
    try:
        yield _told(found, ray.nodes(), context.dashboard_url)
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _apart() -> Iterator[None]:
    """A Ray that starts meanwhile is in no session of ours, so what ends the driver's whole group (a terminal that
    closes, `timeout`) leaves it alone, and trials can save themselves. Where it could outlive the driver it stays.
    """
    from ray._private import services, utils

    popen = services.ConsolePopen
    if utils.detect_fate_sharing_support():
        services.ConsolePopen = partial(popen, start_new_session=True)
    try:
        yield
    finally:
        services.ConsolePopen = popen


def _told(found: addresses.Found, nodes: list[dict[str, Any]], dashboard: str | None) -> str:
    alive = [n for n in nodes if n["Alive"]]
    cpus, gpus = (sum(n["Resources"].get(k, 0) for n in alive) for k in ("CPU", "GPU"))
    has = f"{len(alive)} node{'s' * (len(alive) > 1)}, {cpus:g} CPU, {gpus:g} GPU"
    lines = [f"Ray: the one at {found.address} ({found.why}): {has}"]
    if found.address == addresses.LOCAL:
        dashboard, lines = None, [f"Ray: one of its own on this machine ({found.why}): {has}"]
    if dashboard:
        host, port = dashboard.rsplit(":", 1)
        head = next((n for n in alive if "node:__internal_head__" in n["Resources"]), alive[0])
        tunnel = f"ssh -N -L {port}:{host}:{port} {head['NodeManagerAddress']}"
        lines.append(f"its dashboard, from elsewhere: {tunnel}, then http://127.0.0.1:{port}")
    if note := addresses.token_note():
        lines.append(note)
    if os.environ["RAY_AUTH_MODE"] == "disabled":
        lines.append("RAY_AUTH_MODE=disabled: whoever reaches this Ray can run code as you")
    return "\n".join(lines)


def private_folder() -> Path:
    """Where our own Rays live, closed to other users.

    Raises UsageError if the place is somebody else's.
    """
    name = f"offrl-ray-{os.getuid()}"
    places = (os.environ.get("RAY_TMPDIR"), tempfile.gettempdir(), "/tmp")
    folder = next(Path(p, name) for p in places if p and (len(p) + 1 + len(name) <= SOCKET_ROOM or p == "/tmp"))
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700, parents=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        rule = f"{folder} must be a folder of your own, for Ray's sockets and logs, but is a link or another user's"
        raise UsageError([f"{rule}; remove it, or set RAY_TMPDIR to a short path that is yours"])
    folder.chmod(0o700)
    _clear(folder / RAY)
    return folder / RAY


def _clear(folder: Path) -> None:
    """Remove the sessions of yesterday and before whose drivers are gone: their names end in a driver's pid."""
    for path in folder.glob("session_2*_*"):
        pid = path.name.rsplit("_", 1)[1]
        if path.is_symlink() or not pid.isdecimal() or time.time() - path.stat().st_mtime < OLD_SECONDS:
            continue
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            shutil.rmtree(path, ignore_errors=True)
        except OSError:  # another user's by now
            continue


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
