"""Everything that can go wrong with a sweep on one machine, done to it by a real kernel under a real Ray.

Row of the failure table                covered by
trial SIGKILL                           test_processes_killed_and_frozen; storms
eval actor SIGKILL                      test_processes_killed_and_frozen; storms
eval actor hang                         test_processes_killed_and_frozen (SIGSTOP); test_evaluators.py; storms
trial hang                              test_processes_killed_and_frozen (SIGSTOP); test_each_fault (a sleep: stacks)
driver SIGKILL, then resume             test_damaged_checkpoints; test_sweep.py; storms/driver.py
driver SIGTERM, SIGINT, `stop`          test_signals; test_draining.py; test_terminal.py
the driver's terminal closes            test_signals
node loss                               test_nodes.py (two raylets on this machine)
node freeze                             not here: for Ray it is a node that is lost, after half a minute
head/GCS loss                           storms/driver.py --gcs; Ray needs a minute to notice
OOM kill                                test_each_fault (MemoryError), test_failures.py; not the real ones: the kernel's
                                        is a SIGKILL, and Ray's monitor judges a memory that tests share with others
disk full                               test_disk_full (a limit of the kernel); test_records.py
truncated, bit-flipped checkpoint       test_damaged_checkpoints (one bit); test_checkpoint.py (every cut)
torn ledger                             storms/driver.py; test_records.py (every cut)
HDF5 truncated, flipped, shapes, NaN    test_hdf5.py: without Ray, since nothing is started
HDF5 changed between sessions           test_signals
NaN in training                         test_each_fault; test_divergence.py
env crash, physics segfault             test_each_fault (abort inside env.step)
GPU loss, CUDA error                    test_each_fault (the error alone: it takes a GPU to lose one)
clock skew                              test_records.py: records are ordered by number; limits use a monotonic clock
same sweep twice, two drivers           test_signals; test_lock.py
bad config                              test_cli.py, test_plan.py: without Ray, since nothing is started
Optuna storage locked                   a sweep opens no storage: optuna.journal is derived from records
TensorBoard file torn                   derived from records, `offrl-ray rebuild`
poisoned code                           test_each_fault; test_a_sweep_whose_trials_all_fail_stops_itself
"""

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import pytest

from offrl_ray import checkpoint
from tests.distributed.faulty import EVAL_EVERY, STEPS
from tests.distributed.user import ROOT, Record, Session, log_of, redone, sessions, violations

pytestmark = pytest.mark.ray
ENTRY = ROOT / "tests/distributed/faulty.py"
HEALTHY = 0.001
Start = Callable[..., Session]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def start(home: Path, tmp_path: Path) -> Iterator[Start]:
    """Start a sweep of as many trials as learning rates, with faults of theirs, into tmp_path/faulty-smoke."""

    def begin(*extra: str, rates: list[float], terminal: int | None = None, **faults: list[float]) -> Session:
        env = {"RATES": json.dumps(rates), "FAULTS": json.dumps(faults)}
        return session(home, ENTRY, "--out", tmp_path, *extra, env=env, terminal=terminal)

    with sessions() as session:
        yield begin


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "faulty-smoke"


def offrl_ray(home: Path, *args: str | Path) -> tuple[int, str]:
    session = Session(home, "-m", "offrl_ray", *args)
    try:
        return session.ended(), session.text
    finally:
        session.close()


def of(log: list[Record], trial: str, kind: str) -> list[Record]:
    return [r for r in log if r["kind"] == kind and r.get("trial", "").startswith(trial)]


def reported(folder: Path, trial: str) -> int:
    return max((r["step"] for r in of(log_of(folder), trial, "train")), default=0)


def reaches(session: Session, folder: Path, trial: str, step: int) -> None:
    session.until(lambda: reported(folder, trial) >= step)


def worker(session: Session, trial: str) -> int:
    """The process that has a trial's folder locked."""

    def holds(pid: int) -> bool:
        try:
            links = [os.readlink(p) for p in Path(f"/proc/{pid}/fd").iterdir()]
        except OSError:
            return False
        return any(f"/trials/{trial}" in link and link.endswith(".lock") for link in links)

    return session.until(lambda: next(filter(holds, session.processes()), None))


def ends(folder: Path) -> dict[str, str]:
    """The first two letters of each trial -> how it ended, once."""
    found = [(r["trial"][:2], r["failure"] or r["status"]) for r in log_of(folder) if r["kind"] == "end"]
    assert set(Counter(name for name, _ in found).values()) <= {1}
    return dict(found)


def test_processes_killed_and_frozen(start: Start, folder: Path, home: Path) -> None:
    session = start("--hang-after", "8", rates=[HEALTHY, 0.002, 0.003, 0.004])
    reaches(session, folder, "00", EVAL_EVERY + 10)
    os.kill(worker(session, "00"), signal.SIGSTOP)
    reaches(session, folder, "01", EVAL_EVERY + 10)
    os.kill(worker(session, "01"), signal.SIGKILL)
    (evaluator,) = session.actors("FaultyActor")
    os.kill(evaluator, signal.SIGKILL)
    session.until(lambda: len(of(log_of(folder), "01", "start")) == 2)
    (other,) = session.until(lambda: [p for p in session.actors("FaultyActor") if p != evaluator])
    reaches(session, folder, "01", 2 * EVAL_EVERY - 10)
    os.kill(other, signal.SIGSTOP)
    reaches(session, folder, "03", 10)
    name = of(log_of(folder), "03", "start")[0]["trial"]
    code, text = offrl_ray(home, "stop", folder, name)
    assert code == 0, text
    assert session.ended() == 0, session.text
    assert violations(folder) == []
    log = log_of(folder)
    assert ends(folder) == {"00": "completed", "01": "completed", "02": "completed", "03": "pruned"}
    assert [(r["trial"][:2], r["failure"]) for r in log if r["kind"] == "fault"] in (
        [("00", "hang"), ("01", "infra")],
        [("01", "infra"), ("00", "hang")],
    )
    assert [r["step"] for t in ("00", "01") for r in of(log, t, "start")] == [0, EVAL_EVERY, 0, EVAL_EVERY]
    assert max(redone(log)) <= EVAL_EVERY
    assert any("no answer in 8 s" in r["text"] for r in log if r["kind"] == "note")
    assert not {evaluator, other} & session.processes().keys()


def test_each_fault_ends_its_own_trial_or_is_survived(start: Start, folder: Path, home: Path) -> None:
    rates = [HEALTHY, 0.002, 0.003, 0.004, 0.005, 0.006, 1e30]
    faults = {"crash": [0.002], "code": [0.003], "hang": [0.004], "oom": [0.005], "gpu": [0.006]}
    session = start("--hang-after", "8", rates=rates, **faults)
    assert session.ended() == 1, session.text
    expected = {"00": "completed", "01": "eval", "02": "code", "03": "completed", "04": "completed"}
    assert ends(folder) == expected | {"05": "completed", "06": "diverged"}
    log = log_of(folder)
    lost = {r["trial"][:2]: r["failure"] for r in log if r["kind"] == "fault"}
    assert lost == {"03": "hang", "04": "oom", "05": "gpu"}
    assert [r["step"] for r in of(log, "03", "start")] == [0, EVAL_EVERY]
    for trial in ("04", "05"):  # they could still save themselves
        assert [r["step"] for r in of(log, trial, "start")] == [0, EVAL_EVERY + 10]
    (end,) = of(log, "02", "end")
    assert "poisoned" in end["reason"]
    (trace,) = (folder / "trials").glob("03*/hang_1.txt")
    assert "in fail" in trace.read_text()
    assert reported(folder, "01") == STEPS
    assert sum("evaluation at step" in r["text"] for r in of(log, "01", "note")) <= 3 * STEPS // EVAL_EVERY
    assert violations(folder) == []
    code, text = offrl_ray(home, "retry", folder, "--failed", "--reason", "eval")
    assert code == 1, text
    assert [r["status"] for r in of(log_of(folder), "01", "end")] == ["failed", "completed"]
    assert [r["step"] for r in of(log_of(folder), "01", "start")] == [0, STEPS]
    assert violations(folder) == []


def test_signals(start: Start, folder: Path, home: Path) -> None:
    """The same sweep interrupted in every way that a person has, and refused in every way that would spoil it."""
    rates = [HEALTHY, 0.002]
    start = partial(start, "--set", "train.steps=2000", rates=rates)
    first = start()
    reaches(first, folder, "01", EVAL_EVERY + 10)
    beside = start()
    assert beside.ended() == 2
    assert f"process {first.process.pid}" in beside.text
    assert f"on {os.uname().nodename!r}" in beside.text
    interrupted(first, folder, lambda: first.send_all(signal.SIGTERM), 143)
    ours, theirs = os.openpty()
    in_terminal = start(terminal=theirs)
    os.close(theirs)
    goes_on(in_terminal, folder)

    def hang_up() -> None:
        os.close(ours)
        time.sleep(0.1)
        in_terminal.send_all(signal.SIGHUP)  # as when the shell ends, too

    interrupted(in_terminal, folder, hang_up, 129)
    second = start()
    goes_on(second, folder)
    interrupted(second, folder, lambda: second.send(signal.SIGINT), 130)
    third = start()
    goes_on(third, folder)
    interrupted(third, folder, lambda: offrl_ray(home, "stop", folder), 1)
    stuck = start(stuck=rates)
    goes_on(stuck, folder, 0)
    stuck.send(signal.SIGINT)
    stuck.until(lambda: "once more: end now" in stuck.text)
    stuck.send(signal.SIGINT)
    assert stuck.ended(60) in (130, -signal.SIGINT)
    assert "Traceback" not in stuck.text
    stuck.gone()
    with changed_data(home):
        refused = start()
        assert refused.ended() == 2
        assert "has changed" in refused.text
    last = start()
    assert last.ended() == 0, last.text
    assert ends(folder) == {"00": "completed", "01": "completed"}
    assert violations(folder) == []


@contextmanager
def changed_data(home: Path) -> Iterator[None]:
    """One reward is another, and the file's seal is broken off."""
    demos = next((home / "cache").rglob("*.h5"))
    before = {path: path.read_bytes() for path in (demos, demos.with_suffix(".json"))}
    with h5py.File(demos, "r+") as f:
        f["traj_0/rewards"][0] += 1
    meta = json.loads(before[demos.with_suffix(".json")])
    del meta["sha256"]
    demos.with_suffix(".json").write_text(json.dumps(meta))
    try:
        yield
    finally:
        for path, content in before.items():
            path.write_bytes(content)


def interrupted(session: Session, folder: Path, how: Callable[[], Any], code: int) -> None:
    before = {t: reported(folder, t) for t in ("00", "01")}
    how()
    assert session.ended() == code, session.text
    assert violations(folder) == []
    for trial, step in before.items():
        saved = checkpoint.steps(next((folder / "trials").glob(f"{trial}*")))
        assert max(saved) >= step
        assert max(saved) >= reported(folder, trial)


def goes_on(session: Session, folder: Path, reports: int = 2) -> None:
    """Where it was saved, and not at the last evaluation."""
    log = log_of(folder)
    before = {t: reported(folder, t) for t in ("00", "01")}
    attempts = {t: len(of(log, t, "start")) for t in before}
    for trial, step in before.items():
        session.until(lambda: len(of(log_of(folder), trial, "start")) > attempts[trial])  # noqa: B023
        assert of(log_of(folder), trial, "start")[-1]["step"] >= step
        reaches(session, folder, trial, step + 10 * reports)


def test_damaged_checkpoints(start: Start, folder: Path) -> None:
    """Of a sweep whose driver was killed."""
    start = partial(start, "--set", "train.steps=1000", rates=[HEALTHY, 0.002, 0.003])
    session = start()
    for trial in ("00", "01"):
        session.until(lambda: {200} <= {r["step"] for r in of(log_of(folder), trial, "eval")})  # noqa: B023
    session.kill()
    session.gone()
    assert violations(folder) == []
    some, all_ = (next((folder / "trials").glob(f"{t}*")) for t in ("00", "01"))
    *_, previous, newest = checkpoint.steps(some)
    flip(checkpoint.path_of(some, newest))
    for step in checkpoint.steps(all_):
        flip(checkpoint.path_of(all_, step))
    again = start()
    assert again.ended() == 1, again.text
    assert ends(folder) == {"00": "completed", "01": "checkpoint", "02": "completed"}
    log = log_of(folder)
    assert [r["step"] for r in of(log, "00", "start")] == [0, previous]
    assert any(f"step_{newest:08d} is damaged" in r["text"] for r in of(log, "00", "note"))
    assert violations(folder) == []


def flip(path: Path) -> None:
    content = bytearray((path / checkpoint.TENSORS).read_bytes())
    content[len(content) // 2] ^= 1
    (path / checkpoint.TENSORS).write_bytes(content)


def test_a_sweep_whose_trials_all_fail_stops_itself(start: Start, folder: Path) -> None:
    rates = [i / 1000 for i in range(1, 9)]
    session = start(rates=rates, code=rates)
    assert session.ended() == 1
    assert "trials failed by themselves and none ended well; one of them: RuntimeError: poisoned" in session.text
    log = log_of(folder)
    assert 3 <= len(ends(folder)) < len(rates)
    assert len([r for r in log if r["kind"] == "start"]) < len(rates)
    assert violations(folder) == []


def test_disk_full(start: Start, folder: Path, home: Path) -> None:
    rates = [HEALTHY, 0.002]
    session = start(rates=rates, disk=[0.002])
    assert session.ended() == 74, session.text
    assert ends(folder) in ({}, {"00": "completed"})  # its neighbour may have been faster than the end of the disk
    (fault,) = (r for r in log_of(folder) if r["kind"] == "fault")
    assert fault["failure"] == "disk"
    assert violations(folder) == []
    code, text = offrl_ray(home, "resume", folder)
    assert code == 0, text
    assert ends(folder) == {"00": "completed", "01": "completed"}
    assert [r["step"] for r in of(log_of(folder), "01", "start")] == [0, EVAL_EVERY]
    assert violations(folder) == []
