"""Which Ray is joined, with which token, and where our own live. No Ray runs here but for the last test."""

import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from offrl_ray.distributed import address, session
from offrl_ray.distributed.address import LOCAL, check, find, token, token_note
from offrl_ray.errors import UsageError

NAMES = ("RAY_ADDRESS", "RAY_TMPDIR", "TMPDIR", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
HEAD = "10.0.0.9:6379"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str | None, str]:
    """What the Ray at any address answers to a token, and to None."""
    found: dict[str | None, str] = {}
    monkeypatch.setattr(address, "ask", lambda where, token: found.get(token, "closed"))
    monkeypatch.setattr(address, "_differences", lambda where, token: [])
    return found


def started(home: Path, text: str = HEAD) -> Path:
    file = home / "ray" / "ray_current_cluster"
    file.parent.mkdir()
    file.write_text(text)
    return file


def test_an_address_that_is_given_is_taken() -> None:
    assert (find(LOCAL).address, find(HEAD).address) == (LOCAL, HEAD)


@pytest.mark.parametrize("told", [HEAD, LOCAL])
def test_ray_address_comes_before_what_runs_here(
    told: str, home: Path, answers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    started(home, "10.0.0.1:6379")
    monkeypatch.setenv("RAY_ADDRESS", told)
    assert find("auto") == (told, "RAY_ADDRESS")
    assert find("10.0.0.2:1").address == "10.0.0.2:1"


@pytest.mark.parametrize("told", ["http://10.0.0.9:8265", "ray://head:10001", "head"])
def test_a_ray_address_that_is_none_is_named(told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", told)
    with pytest.raises(UsageError, match=r"RAY_ADDRESS must be .*HOST:PORT.*" + told):
        find("auto")


def test_a_ray_that_this_user_started_is_joined(home: Path, answers: Any) -> None:
    file = started(home)
    assert find("auto") == (HEAD, f"which you started: {file}")


def test_without_one_a_local_is_made(home: Path) -> None:
    assert find("auto").address == LOCAL


def test_one_that_is_gone_is_not_joined(home: Path, answers: Any) -> None:
    started(home)
    answers[None] = "silent"
    found = find("auto")
    assert found.address == LOCAL
    assert f"'{HEAD}', does not answer" in found.why


def test_an_address_that_somebody_else_wrote_is_not_asked(
    home: Path, answers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = started(home)
    with monkeypatch.context() as m:
        m.setattr(os, "getuid", lambda: 12345)
        assert find("auto").address == LOCAL
    file.rename(home / "mine")
    file.symlink_to(home / "mine")
    assert find("auto").address == LOCAL


def test_the_token_is_looked_for_in_rays_order(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert token() == (None, str(home / ".ray" / "auth_token"))
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text(" a\n")
    assert token() == ("a", str(home / ".ray" / "auth_token"))
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(home / "t"))
    assert token() == (None, str(home / "t"))
    (home / "t").write_text("b")
    assert token() == ("b", str(home / "t"))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "c")
    assert token() == ("c", "RAY_AUTH_TOKEN")


def test_a_token_that_others_can_read_is_closed_or_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    default, other = home / ".ray" / "auth_token", home / "t"
    default.parent.mkdir()
    for path in (default, other):
        path.write_text("a")
        path.chmod(0o644)
    assert token_note() is None
    assert stat.S_IMODE(default.stat().st_mode) == 0o600
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(other))
    assert f"chmod 600 {other}" in str(token_note())
    assert stat.S_IMODE(other.stat().st_mode) == 0o644


def refusal() -> str:
    with pytest.raises(UsageError) as e:
        check(HEAD)
    (problem,) = e.value.problems
    return problem


def test_what_may_not_be_joined_is_told_with_the_way_out(
    home: Path, answers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers["right"] = "open"
    missing = refusal()
    assert all(w in missing for w in ("wants a token", "RAY_AUTH_TOKEN_PATH", str(home), "scp HEAD", "chmod 600"))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
    assert f"the Ray at {HEAD} has another token than RAY_AUTH_TOKEN" in refusal()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "right")
    check(HEAD)
    answers[None] = "silent"
    assert f"no Ray answers at {HEAD}" in refusal()
    answers[None] = "open"
    assert "is open" in refusal()
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    check(HEAD)
    del answers[None]
    assert "RAY_AUTH_MODE is 'disabled' here; unset it" in refusal()


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    assert address.ask("127.0.0.1:1", None) == "silent"


def test_a_local_ray_lives_where_no_other_user_looks(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = Path("/tmp") / f"s{os.getpid()}"
    short.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(short))
    try:
        place = session.private_folder()
        assert place == short / f"offrl-ray-{os.getuid()}" / "ray"
        assert stat.S_IMODE(place.parent.stat().st_mode) == 0o700
        place.parent.chmod(0o755)
        session.private_folder()
        assert stat.S_IMODE(place.parent.stat().st_mode) == 0o700
        with monkeypatch.context() as m:
            m.setattr(Path, "lstat", lambda self: os.stat_result((stat.S_IFDIR | 0o700, 0, 0, 0, 12345, 0, 0, 0, 0, 0)))
            with pytest.raises(UsageError, match="another user's"):
                session.private_folder()
        place.parent.rmdir()
        place.parent.symlink_to(home)
        with pytest.raises(UsageError, match="is a link"):
            session.private_folder()
        place.parent.unlink()
    finally:
        short.rmdir()


def test_a_place_too_long_for_sockets_is_not_taken(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = home / ("x" * 60)
    long.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(long))
    monkeypatch.setattr(session.tempfile, "gettempdir", lambda: "/tmp")
    assert session.private_folder() == Path(f"/tmp/offrl-ray-{os.getuid()}/ray")


def test_sessions_of_drivers_that_are_gone_are_cleared_a_day_later(home: Path) -> None:
    long_ago, nobody = 1e9, 2**22 + 1
    kept = [home / f"session_2026_{os.getpid()}", home / "session_2026_1_x", home / "session_latest"]
    old, fresh = home / f"session_2026_{nobody}", home / f"session_2027_{nobody}"
    for path in (*kept, old, fresh):
        path.mkdir()
        if path != fresh:
            os.utime(path, (long_ago, long_ago))
    session._clear(home)
    assert sorted(home.iterdir()) == sorted([*kept, fresh])


def test_one_line_says_which_ray_was_joined_and_the_tunnel_to_its_dashboard(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    head = {"Alive": True, "NodeManagerAddress": "10.0.0.9", "Resources": {"CPU": 4.0, "node:__internal_head__": 1}}
    worker = {"Alive": True, "NodeManagerAddress": "10.0.0.8", "Resources": {"CPU": 8.0, "GPU": 2.0}}
    dead = {"Alive": False, "NodeManagerAddress": "10.0.0.7", "Resources": {"CPU": 8.0}}
    told = session._told(address.Found(HEAD, "RAY_ADDRESS"), [worker, head, dead], "127.0.0.1:8265")
    assert told.splitlines() == [
        f"Ray: the one at {HEAD} (RAY_ADDRESS): 2 nodes, 12 CPU, 2 GPU",
        "its dashboard, from elsewhere: ssh -N -L 8265:127.0.0.1:8265 10.0.0.9, then http://127.0.0.1:8265",
    ]


@pytest.mark.parametrize(("mode", "becomes"), [(None, "token"), ("", "token"), ("disabled", "disabled")])
def test_no_word_but_disabled_opens_a_ray(mode: str | None, becomes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if mode is not None:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    session.locate(LOCAL)
    assert os.environ["RAY_AUTH_MODE"] == becomes


@pytest.mark.parametrize("mode", ["off", "k8s", "Token"])
def test_a_mode_that_ray_would_take_for_open_is_refused(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    with pytest.raises(UsageError, match=f"RAY_AUTH_MODE must be token.*{mode!r}"):
        session.locate(LOCAL)


def test_a_local_ray_that_is_open_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    node = {"Alive": True, "NodeManagerAddress": "10.0.0.9", "Resources": {"CPU": 4.0}}
    told = session._told(address.Found(LOCAL, "--address"), [node], "127.0.0.1:8265")
    assert "whoever reaches this Ray can run code as you" in told
    assert "tunnel" not in told
    assert "8265" not in told


def test_the_token_is_shown_to_no_program_of_another_user(home: Path, answers: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        started(home, f"127.0.0.1:{port}")
        assert find("auto").address == f"127.0.0.1:{port}"
        assert address._listens_as(os.getuid(), port)
        assert not address._listens_as(os.getuid() + 1, port)
