"""What Ray needs of this machine, who may use it, and those that run here."""

import contextlib
import errno
import os
import shutil
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from offrl_ray.distributed import address
from offrl_ray.distributed.address import LONGEST, SOCKET
from offrl_ray.doctor.check import Check, fail, ok, warn

PORTS = {6379: "a head", 8265: "its dashboard"}
FULL = 0.95  # beyond it Ray writes no objects to a disk
RAYS = ("/gcs_server", "ray/dashboard/")
NEW_TOKEN = "ray get-auth-token --generate && chmod 600 ~/.ray/auth_token"


def folder() -> list[Check]:
    """Sockets, logs and whatever does not fit into memory."""
    place, name = address.ray_folder(), "ray's folder"
    if len(str(place / SOCKET)) > LONGEST:
        mend = f"export RAY_TMPDIR=DIR of {LONGEST - len(SOCKET) - 1} letters at most"
        return [fail(name, f"{place} is too long for a socket's path", mend)]
    if not (place.is_dir() and os.access(place, os.W_OK)):
        return [fail(name, f"{place} cannot be written to", "export RAY_TMPDIR=DIR of your own")]
    disk = shutil.disk_usage(place)
    found = f"{place}, {disk.used / disk.total:.0%} of its disk in use"
    ours = place / "ray"
    if ours.is_dir() and ours.stat().st_uid == os.getuid() and _mode(place) & _mode(ours) & 0o077:
        return [warn(name, f"{ours} is open to other users (mode {_mode(ours):o})", f"chmod 700 {ours}")]
    if disk.used > FULL * disk.total:
        return [warn(name, f"{found}; beyond {FULL:.0%} Ray writes no objects there", "make room, or set RAY_TMPDIR")]
    return [ok(name, found)]


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def ports() -> list[Check]:
    with socket.socket() as s:
        try:
            s.bind(("127.0.0.1", 0))
            s.listen()
        except OSError as e:
            return [fail("ports", f"no program may listen here: {e.strerror}", "allow it, in the sandbox or container")]
    checks = []
    for port, what in PORTS.items():
        if who := taken(port):
            checks.append(warn(f"port {port}", f"taken by {who[:80]}", f"give {what} another port"))
    return checks or [ok("ports", f"{' and '.join(map(str, PORTS))} are free, or a Ray's")]


def taken(port: int) -> str:
    """Who listens there; empty for nobody, and for a Ray, of which `running` tells."""
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind(("127.0.0.1", port))
        except OSError as e:
            if e.errno != errno.EADDRINUSE:
                raise
        else:
            return ""
    for process, command in processes():
        if port in listening(process):
            text = " ".join(command)
            return "" if any(part in text for part in RAYS) else f"process {process.name} ({text})"
    return "another user's process"


def listening(process: Path) -> list[int]:
    """TCP ports of a process, a folder in /proc; none if it is another user's."""
    sockets = set()
    with contextlib.suppress(OSError):  # another user's, or it has just ended
        for fd in (process / "fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # it has just been closed
                sockets.add(os.readlink(fd))
    return [o.port for o in address.listeners() if f"socket:[{o.inode}]" in sockets]


def processes() -> Iterator[tuple[Path, list[str]]]:
    """Folder in /proc and command line."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            yield path, (path / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
        except OSError:  # it has just ended
            continue


def token() -> list[Check]:
    """Its place, its mode, and variables that contradict each other; never the token itself."""
    if (mode := os.environ.get("RAY_AUTH_MODE", "token")) != "token":
        found = f"RAY_AUTH_MODE is {mode!r}: whoever reaches a Ray of yours can run code as you"
        return [fail("token", found, "unset RAY_AUTH_MODE")]
    text, place = address.token()
    if text is None and "RAY_AUTH_TOKEN_PATH" in os.environ:
        found = f"RAY_AUTH_TOKEN_PATH is {place}, which holds none"
        return [fail("token", found, "unset it, or copy the head's token there")]
    if text is None:
        later = "the first sweep makes one, but a `ray start` before that would be open"
        return [warn("token", f"none yet: {later}", NEW_TOKEN)]
    checks = [_private(Path(place))] if place != "RAY_AUTH_TOKEN" else [ok("token", "that of RAY_AUTH_TOKEN")]
    others = [os.environ.get("RAY_AUTH_TOKEN_PATH"), str(Path.home() / ".ray" / "auth_token")]
    for other in (f for f in others if f and f != place):
        if _text(Path(other)) not in ("", text):
            found = f"{other} holds another one than {place}, which is used"
            checks.append(warn("token", found, "keep one of them"))
    return checks


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _private(path: Path) -> Check:
    for p, right in ((path, 0o600), (path.parent, 0o700)):
        if p.stat().st_uid != os.getuid():
            return fail("token", f"{p} belongs to another user", "make one of your own: " + NEW_TOKEN)
        if _mode(p) & 0o077 and (p == path or p.name == ".ray"):  # another folder may hold more than a token
            return fail("token", f"{p} is open to other users (mode {_mode(p):o})", f"chmod {right:o} {p}")
    return ok("token", f"{path}, for this user alone")


def running() -> list[Check]:
    """Every Ray whose head is on this machine, whoever started it."""
    heads = [_head(process, command) for process, command in processes()]
    return [_running(ports) for ports in heads if ports] or [ok("ray", "none runs here; a sweep starts one of its own")]


def _head(process: Path, command: list[str]) -> list[int]:
    """Where a head may listen; nothing for any other process, and for one that has just begun."""
    if not command or not command[0].endswith("/gcs_server"):
        return []
    told = next((w.partition("=")[2] for w in command if w.startswith("--gcs_server_port=")), "0")
    return [int(told)] if told != "0" else listening(process)


def _running(ports: list[int]) -> Check:
    for here in (f"127.0.0.1:{p}" for p in ports):
        match address.ask(here, None):
            case "open":
                mend = "`ray stop`, then start it with RAY_AUTH_MODE=token and a token: " + NEW_TOKEN
                return fail("ray", f"the one at {here} is open: whoever reaches it can run code as its user", mend)
            case "closed":
                return ok("ray", f"one runs at {here} and wants a token")
    return warn("ray", f"one runs here, but does not answer at {', '.join(map(str, ports))}")
