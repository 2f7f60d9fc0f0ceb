"""Which Ray to join, and whether it may be joined: answered in two seconds, where Ray's own word takes twenty."""

import argparse
import json
import os
import platform
import re
import stat
from pathlib import Path
from typing import Any, NamedTuple

from offrl_ray.errors import UsageError

LOCAL = "local"
HELP = "Ray to use: auto (RAY_ADDRESS, one that you started on this machine, or else its own), local, HOST:PORT"
ANSWER_SECONDS = 1.5
SOCKET = "ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"
LONGEST = 107  # of a socket's path, in Linux
LISTENS = "0A"  # in /proc/net/tcp
TOKENS = "RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH and ~/.ray/auth_token"
COPY = (
    "copy it from the head: mkdir -p -m 700 ~/.ray && scp HEAD:.ray/auth_token ~/.ray/auth_token "
    "&& chmod 600 ~/.ray/auth_token"
)


class Found(NamedTuple):
    address: str  # HOST:PORT, or local
    why: str


def option(text: str) -> str:
    """The value of `--address`."""
    if not valid(text):
        raise argparse.ArgumentTypeError(f"must be auto, local or HOST:PORT, but is {text!r}")
    return text


def valid(text: str) -> bool:
    return text in ("auto", LOCAL) or re.fullmatch(r"[^\s:/]+:\d{1,5}", text) is not None


def find(address: str) -> Found:
    """What `--address` means here. Raises UsageError if RAY_ADDRESS is no HOST:PORT."""
    if address != "auto":
        return Found(address, "--address")
    told = os.environ.get("RAY_ADDRESS") or "auto"
    if not valid(told):
        rule = (
            "RAY_ADDRESS must be auto, local or the HOST:PORT of a head (its port is 6379 unless it was told another)"
        )
        raise UsageError([f"{rule}, but is {told!r}; unset it, or give --address HOST:PORT"])
    if told != "auto":
        return Found(told, "RAY_ADDRESS")
    file = ray_folder() / "ray" / "ray_current_cluster"
    started = _read_own(file)
    if started is None:
        return Found(LOCAL, f"you started none here: no {file} of yours")
    if not valid(started) or ask(started, None) == "silent":
        return Found(LOCAL, f"that of {file}, {started!r}, does not answer")
    if not _listens_as(os.getuid(), int(started.rpartition(":")[2])):
        return Found(LOCAL, f"that of {file}, {started!r}, is gone, and another user's program listens there")
    return Found(started, f"which you started: {file}")


def _listens_as(uid: int, port: int) -> bool:
    """Whether the user's own program listens on a port of this machine, who alone may see the token.

    True where nobody listens here, as on a node whose head is elsewhere, or the system does not tell (no /proc).
    """
    owners = {o.uid for o in listeners() if o.port == port}
    return not owners or owners == {uid}


class Listener(NamedTuple):
    port: int
    uid: int
    inode: str  # of its socket


def listeners() -> list[Listener]:
    """Who takes TCP connections on this machine; nothing where the system does not tell."""
    files = [f for v in ("tcp", "tcp6") if (f := Path("/proc/net", v)).exists()]
    rows = [line.split() for f in files for line in f.read_text().splitlines()[1:]]
    return [Listener(int(r[1].rpartition(":")[2], 16), int(r[7]), r[9]) for r in rows if r[3] == LISTENS]


def ray_folder() -> Path:
    """Where Ray keeps its own folder, ray/."""
    return Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp")


def _read_own(file: Path) -> str | None:
    """The text of a file of this user; None for one of somebody else, who might want our token."""
    try:
        fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None
    with os.fdopen(fd) as f:
        found = os.fstat(fd)
        return f.read(300).strip() if found.st_uid == os.getuid() and stat.S_ISREG(found.st_mode) else None


def token() -> tuple[str | None, str]:
    """The token that Ray will use here and where it stands, looked for in Ray's order; None if there is none."""
    if text := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return text, "RAY_AUTH_TOKEN"
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    try:
        return path.read_text().strip() or None, str(path)
    except OSError:
        return None, str(path)


def token_note() -> str | None:
    """What is wrong with the token file's mode, if it could not be mended."""
    _, place = token()
    path = Path(place)
    if place == "RAY_AUTH_TOKEN" or not path.exists() or not path.stat().st_mode & 0o077:
        return None
    if "RAY_AUTH_TOKEN_PATH" not in os.environ:
        path.chmod(0o600)
        return None
    return f"{path} can be read by others, and whoever has it can run code on the cluster: chmod 600 {path}"


def check(address: str) -> None:
    """Raises UsageError unless a Ray answers there that wants our token, is of our version, and has a node here."""
    disabled = os.environ.get("RAY_AUTH_MODE") == "disabled"
    text, place = token()
    answer = ask(address, None)
    if answer == "silent":
        problem = f"no Ray answers at {address} within {ANSWER_SECONDS:g} s; start one there (`ray start --head`, "
        raise UsageError([problem + "`ray up`), or give another --address; `--address local` needs none"])
    if answer == "open" and not disabled:
        problem = f"the Ray at {address} is open: whoever reaches it can run code as you; start all its nodes with "
        problem += "RAY_AUTH_MODE=token and one token (`ray get-auth-token --generate`)"
        raise UsageError([f"{problem}; RAY_AUTH_MODE=disabled joins it all the same"])
    if answer == "closed":
        if disabled:
            raise UsageError([f"the Ray at {address} wants a token, but RAY_AUTH_MODE is 'disabled' here; unset it"])
        if text is None:
            problem = f"the Ray at {address} wants a token, and there is none here: looked for in {TOKENS}"
            raise UsageError([f"{problem} (the last look: {place}); {COPY}"])
        if ask(address, text) == "closed":
            raise UsageError([f"the Ray at {address} has another token than {place}; {COPY}"])
    if problems := _differences(address, text):
        raise UsageError(problems)


def ask(address: str, token: str | None) -> str:
    """How a Ray at HOST:PORT answers to a token or none: open (it needs none, or takes this), closed, or silent."""
    import grpc

    stubs, messages, metadata, channel = _gcs(address, token)
    try:
        stubs.NodeInfoGcsServiceStub(channel).CheckAlive(
            messages.CheckAliveRequest(), timeout=ANSWER_SECONDS, metadata=metadata
        )
    except grpc.RpcError as e:
        return "closed" if e.code() == grpc.StatusCode.UNAUTHENTICATED else "silent"
    finally:
        channel.close()
    return "open"


def _gcs(address: str, token: str | None) -> tuple[Any, Any, list[tuple[str, str]], Any]:
    import grpc
    from ray._common.tls_utils import load_certs_from_env
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    metadata = [("authorization", f"Bearer {token}")] if token else []
    options = [("grpc.enable_http_proxy", 0)]
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        chain, key, root = load_certs_from_env()
        channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(root, key, chain), options)
    else:
        channel = grpc.insecure_channel(address, options)
    return gcs_service_pb2_grpc, gcs_service_pb2, metadata, channel


def _differences(address: str, token: str | None) -> list[str]:
    """Why a driver of this machine cannot work on a Ray that lets it in: its version, or no node here."""
    import ray
    from ray._private.services import find_node_ids

    stubs, messages, metadata, channel = _gcs(address, token)
    how = {"timeout": ANSWER_SECONDS, "metadata": metadata}
    try:
        key = messages.InternalKVGetRequest(namespace=b"cluster", key=b"CLUSTER_METADATA")
        about = json.loads(stubs.InternalKVGcsServiceStub(channel).InternalKVGet(key, **how).value)
        reply = stubs.NodeInfoGcsServiceStub(channel).GetAllNodeInfo(messages.GetAllNodeInfoRequest(), **how)
    finally:
        channel.close()
    there = {"Ray": about["ray_version"], "Python": about["python_version"]}
    here = {"Ray": ray.__version__, "Python": platform.python_version()}
    problems = [
        f"the Ray at {address} runs {k} {there[k]}, and here is {here[k]}; all nodes and this one need the same"
        for k in here
        if here[k] != there[k]
    ]
    alive = [n for n in reply.node_info_list if n.state == n.ALIVE]
    if not {n.node_id.hex() for n in alive} & set(find_node_ids()):
        nodes = ", ".join(sorted({n.node_manager_address for n in alive}))
        problem = f"this machine is no node of the Ray at {address} (its nodes: {nodes}), and a driver runs on a node: "
        problems.append(problem + "`ray submit` or `ray job submit` take the script there")
    return problems
