"""Sweeps whose results are in S3: the kill tests again, where a machine and all that is on it may be gone.

The server is moto's, on this machine, behind a proxy that can be taken away.
"""

import json
import logging
import os
import shutil
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from offrl_ray import checkpoint, records
from offrl_ray.store import called, place
from tests.distributed.faulty import EVAL_EVERY
from tests.distributed.test_faults import ENTRY, HEALTHY, Start, ends, of, offrl_ray, reaches, reported, worker
from tests.distributed.user import ROOT, Session, log_of, redone, results, sessions, violations

moto = pytest.importorskip("moto.server", reason="moto[server], the S3 server of these tests, is not installed")
pytest.importorskip("s3fs", reason="s3fs, the extra [s3], is not installed")
pytestmark = pytest.mark.ray
RATES = [HEALTHY, 0.002]
LONG = ("--set", "train.steps=1500")  # there is time to do something to it


class Proxy:
    """A TCP port that leads to another, and can be closed for a while."""

    def __init__(self, to: tuple[str, int]):
        self._to, self._open = to, set[socket.socket]()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.up, self.refused = True, 0
        threading.Thread(target=self._accept, daemon=True).start()

    def down(self) -> None:
        self.up = False
        for s in list(self._open):
            with suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)  # a mere close would not wake who reads

    def _accept(self) -> None:
        while True:
            came, _ = self._listener.accept()
            if not self.up:
                self.refused += 1
                came.close()
                continue
            there = socket.create_connection(self._to)
            threading.Thread(target=self._connect, args=(came, there), daemon=True).start()

    def _connect(self, came: socket.socket, there: socket.socket) -> None:
        self._open |= {came, there}
        with came, there:
            if not self.up:  # since it came
                return
            back = threading.Thread(target=self._pass, args=(there, came), daemon=True)
            back.start()
            self._pass(came, there)
            back.join()
        self._open -= {came, there}

    def _pass(self, a: socket.socket, b: socket.socket) -> None:
        try:
            while data := a.recv(1 << 16):
                b.sendall(data)
            b.shutdown(socket.SHUT_WR)
        except OSError:
            return


@pytest.fixture(scope="module")
def proxy() -> Iterator[Proxy]:
    """An S3 with one bucket, found by the environment as a user's is."""
    import boto3

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    proxy = Proxy(server.get_host_and_port())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        for name, value in {"ACCESS_KEY_ID": "me", "SECRET_ACCESS_KEY": "x", "DEFAULT_REGION": "us-east-1"}.items():
            patch.setenv(f"AWS_{name}", value)
        boto3.client("s3").create_bucket(Bucket="bucket")
        yield proxy
    server.stop()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def out(proxy: Proxy, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The tests look at the driver's own copy, as `fresh` does not."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    return f"s3://bucket/{tmp_path.name}"


@pytest.fixture
def folder(out: str) -> Path:
    return place(f"{out}/faulty-smoke")


@contextmanager
def starts(home: Path, out: str | Path) -> Iterator[Start]:
    """What begins a sweep there."""

    def begin(*extra: str, rates: list[float] = RATES) -> Session:
        return session(home, ENTRY, "--out", out, *extra, env={"RATES": json.dumps(rates)})

    with sessions() as session:
        yield begin


@pytest.fixture
def start(home: Path, out: str) -> Iterator[Start]:
    with starts(home, out) as begin:
        yield begin


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """The home of somebody on another machine."""
    (tmp_path / "elsewhere").mkdir()
    return tmp_path / "elsewhere"


@pytest.fixture(scope="module")
def undisturbed(home: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """What the sweep of RATES gives on a path."""
    out = tmp_path_factory.mktemp("out")
    with starts(home, out) as start:
        session = start(*LONG)
        assert session.ended() == 0, session.text
    return results(log_of(out / "faulty-smoke"))


def forget(home: Path) -> None:
    """The machine is gone, and what the store has is all."""
    shutil.rmtree(home / "cache/offrl-ray/copies")


@pytest.fixture
def fresh(folder: Path, tmp_path: Path) -> Iterator[Path]:
    """The same folder, as another machine finds it."""
    url = called(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
        yield place(url)


def test_a_driver_is_killed_and_its_machine_with_it(
    start: Start, folder: Path, home: Path, tmp_path: Path, elsewhere: Path, undisturbed: tuple[Any, Any]
) -> None:
    url = called(folder)
    session = start(*LONG)
    reaches(session, folder, "01", EVAL_EVERY + 10)
    code, text = offrl_ray(elsewhere, "resume", url)
    assert code == 2, text
    assert f"{url} is being written by process {session.process.pid} on " in text
    session.kill()
    session.gone()
    forget(home)
    again = start(*LONG)
    assert again.ended() == 0, again.text
    forget(home)
    assert ends(folder) == {"00": "completed", "01": "completed"}
    log = log_of(folder)
    assert max(redone(log)) <= EVAL_EVERY
    assert all(r["step"] >= EVAL_EVERY for r in log if r["kind"] == "start" and r["attempt"] > 1)
    assert results(log) == undisturbed
    assert violations(folder) == []
    finished = start(*LONG)
    assert finished.ended() == 0
    assert "this sweep has ended; nothing to do" in finished.text
    code, text = offrl_ray(home, "pull", url, tmp_path / "pulled", "--checkpoints")
    assert code == 0, text
    assert log_of(tmp_path / "pulled") == log
    assert violations(tmp_path / "pulled") == []
    assert checkpoint.steps(next((tmp_path / "pulled/trials").glob("00*"))) == [1400, 1500]
    code, text = offrl_ray(home, "export", url, "--best", tmp_path / "policy")
    assert code == 0, text


def test_a_trial_is_killed_and_the_server_is_away_for_a_while(
    start: Start, proxy: Proxy, folder: Path, home: Path, elsewhere: Path
) -> None:
    session = start(*LONG, rates=[HEALTHY, 0.002, 0.003, 0.004])
    reaches(session, folder, "00", EVAL_EVERY + 10)
    os.kill(worker(session, "00"), signal.SIGKILL)
    session.until(lambda: len(of(log_of(folder), "00", "start")) == 2)
    proxy.down()
    threading.Timer(8, setattr, (proxy, "up", True)).start()
    session.until(lambda: proxy.up)
    assert proxy.refused
    told = len(log_of(folder))
    session.until(lambda: len(log_of(folder)) > told + 5)
    trial = next(p["trial"] for p in log_of(folder)[0]["points"] if p["trial"].startswith("03"))  # it waits its turn
    code, text = offrl_ray(elsewhere, "stop", called(folder), trial)
    assert code == 0, text
    assert session.ended() == 0, session.text
    forget(home)
    assert ends(folder) == {"00": "completed", "01": "completed", "02": "completed", "03": "pruned"}
    log = log_of(folder)
    assert [(r["trial"][:2], r["failure"]) for r in log if r["kind"] == "fault"] == [("00", "infra")]
    assert [r["step"] for r in of(log, "00", "start")] == [0, EVAL_EVERY]
    assert violations(folder) == []


def test_stop_and_resume_over_damaged_objects(start: Start, folder: Path, home: Path, fresh: Path) -> None:
    """`stop` from elsewhere; one checkpoint of the first trial and all of the second are damaged in the bucket."""
    import fsspec

    session = start(*LONG)
    reaches(session, folder, "01", 2 * EVAL_EVERY + 10)
    code, text = offrl_ray(home, "stop", called(folder))
    assert code == 0, text
    assert session.ended() == 1, session.text
    for trial in ("00", "01"):
        assert max(checkpoint.steps(trial_of(fresh, trial))) >= reported(fresh, trial)
    *_, previous, newest = checkpoint.steps(trial_of(fresh, "00"))
    damaged = [checkpoint.path_of(trial_of(fresh, "00"), newest)]
    damaged += [checkpoint.path_of(trial_of(fresh, "01"), s) for s in checkpoint.steps(trial_of(fresh, "01"))]
    s3 = fsspec.filesystem("s3")
    for path in map(called, damaged):
        content = bytearray(s3.cat_file(path))
        content[len(content) // 2] ^= 1
        s3.pipe_file(path, bytes(content))
    forget(home)
    code, text = offrl_ray(home, "resume", called(folder))
    assert code == 1, text
    assert ends(fresh) == {"00": "completed", "01": "checkpoint"}
    log = log_of(fresh)
    assert of(log, "00", "start")[-1]["step"] == previous
    assert any(f"step_{newest:08d} is damaged" in r["text"] for r in of(log, "00", "note"))
    assert violations(fresh) == []


def trial_of(folder: Path, number: str) -> Path:
    return next(folder / "trials" / r["trial"] for r in of(log_of(folder), number, "start"))


def test_a_store_that_stays_away_ends_the_driver_and_the_same_command_goes_on(
    start: Start, proxy: Proxy, folder: Path, undisturbed: tuple[Any, Any]
) -> None:
    session = start(*LONG)
    reaches(session, folder, "00", EVAL_EVERY + 10)
    proxy.down()
    try:
        assert session.ended(300) == 1, session.text
    finally:
        proxy.up = True
    assert "does not answer" in session.text
    session.gone()
    again = start(*LONG)
    assert again.ended() == 0, again.text
    assert ends(folder) == {"00": "completed", "01": "completed"}
    assert results(log_of(folder)) == undisturbed
    assert violations(folder) == []


@pytest.mark.sim
def test_a_sweep_with_physics_from_the_first_record_to_its_pages(home: Path, out: str, tmp_path: Path) -> None:
    sweep = Session(home, ROOT / "tune_configs/tune_cpql.py", "--preset", "smoke", "--out", out)
    try:
        assert sweep.ended(500) == 0, sweep.text
    finally:
        sweep.close()
    forget(home)
    folder = place(f"{out}/cpql-smoke")
    assert violations(folder) == []
    log = log_of(folder)
    assert [r["status"] for r in log if r["kind"] == "end"] == ["completed"] * 10
    code, text = offrl_ray(home, "pull", called(folder), tmp_path / "pulled")
    assert code == 0, text
    assert (tmp_path / "pulled" / records.FILE).read_bytes() == (folder / records.FILE).read_bytes()
    page = Session(home, ROOT / "results_analysis/heatmap.py", tmp_path / "pulled")
    assert page.ended() == 0, page.text
