"""What Tune sees of the conductor; Tune itself runs in tests/distributed."""

import copy
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.tune.search import Searcher

from offrl_ray.distributed import callbacks
from offrl_ray.distributed import waiting as waiting_
from offrl_ray.distributed.callbacks import GRACE_SECONDS, START_SECONDS, Jobs, Reports, Watch
from offrl_ray.distributed.failures import trace_of
from offrl_ray.sweep import requests
from offrl_ray.sweep.plan import Resources


class Fake:
    """A conductor that remembers what it was told."""

    def __init__(self, jobs: list[Any] | None = None):
        self.jobs, self.finished, self.draining = jobs or [], False, ""
        self.taken: list[Any] = []
        self.gone: list[Any] = []

    def next(self) -> Any:
        return self.jobs.pop(0) if self.jobs else None

    def take(self, name: str, batch: Any) -> bool:
        self.taken.append((name, batch))
        return name == "ends"

    def lost(self, *what: Any) -> None:
        self.gone.append(what)

    def drain(self, reason: str) -> None:
        self.draining = reason


class Clock:
    now = 100.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: found.now)
    return found


def watch(conductor: Any, folder: Path, ticks: list[int] | None = None, told: list[str] | None = None) -> Watch:
    tick, say = lambda: (ticks if ticks is not None else []).append(1), (told if told is not None else []).append
    return Watch(conductor, folder, Resources(hang_seconds=60.0), tick, say)


def tune_trial(name: str, status: str = "RUNNING", error: Any = None) -> Any:
    job = SimpleNamespace(trial=name, attempt=1)
    state = SimpleNamespace(ray_actor=f"actor of {name}")
    return SimpleNamespace(config={"job": job}, status=status, temporary_state=state, error=error)


def test_suggestions_are_jobs_then_a_pause_then_the_end() -> None:
    conductor: Any = Fake(["a", "b"])
    jobs = Jobs(conductor)
    assert [jobs.suggest("1"), jobs.suggest("2"), jobs.suggest("3")] == [{"job": "a"}, {"job": "b"}, None]
    conductor.finished = True
    assert jobs.suggest("4") == Searcher.FINISHED


def test_records_go_to_the_conductor_and_no_further(tmp_path: Path) -> None:
    conductor: Any = Fake()
    reports = Reports(conductor, watch(conductor, tmp_path))
    result = {"trial": "goes on", "records": [{"kind": "note"}]}
    assert reports("id", result) is False
    assert "records" not in result
    assert reports("id", {"trial": "ends", "records": []}) is True
    assert conductor.taken == [("goes on", [{"kind": "note"}]), ("ends", [])]
    assert reports.stop_all() is False


def test_what_says_nothing_for_too_long_is_killed_once(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[Any] = []
    monkeypatch.setattr(callbacks.ray, "kill", killed.append)
    conductor: Any = Fake()
    looking = watch(conductor, tmp_path)
    silent, lively, pending = tune_trial("silent"), tune_trial("lively"), tune_trial("pending", "PENDING")
    (tmp_path / "trials" / "silent").mkdir(parents=True)
    for t in (silent, lively):
        looking.on_trial_start(0, [], t)
    for _ in range(int(60 + GRACE_SECONDS)):
        clock.now += 1
        looking.heard("lively")
        looking.on_step_begin(0, [silent, lively, pending])
    assert killed == []
    clock.now += 1.5
    looking.heard("lively")
    looking.on_step_begin(0, [silent, lively, pending])
    clock.now += 1.5
    looking.on_step_begin(0, [silent, lively, pending])
    assert killed == ["actor of silent"]
    assert trace_of(tmp_path / "trials" / "silent", 1).read_text()


def test_a_trial_without_an_actor_is_not_killed(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callbacks.ray, "kill", lambda actor: pytest.fail("killed"))
    conductor: Any = Fake()
    looking, trial = watch(conductor, tmp_path), tune_trial("new")
    trial.temporary_state.ray_actor = None
    looking.on_trial_start(0, [], trial)
    clock.now += 1000
    looking.on_step_begin(0, [trial])


def test_a_sweep_in_which_nothing_starts_ends_and_says_so(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callbacks.ray, "available_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(callbacks, "coming", lambda *wants: brings)
    for name in ("_held", "_nodes", "_help"):
        monkeypatch.setattr(waiting_, name, lambda *of: [])
    monkeypatch.setattr(waiting_, "_help", lambda *of: "what would help")
    conductor: Any = Fake()
    brings, told = [], list[str]()
    looking, waiting = watch(conductor, tmp_path, told=told), tune_trial("waiting", "PENDING")
    running = tune_trial("running")
    for trials in ([waiting, running], [], [tune_trial("done", "TERMINATED")]):
        for _ in range(3):
            clock.now += 100
            looking.heard("running")
            looking.on_step_begin(0, trials)
    assert (conductor.draining, told) == ("", [])
    for _ in range(START_SECONDS - 1):
        clock.now += 1
        looking.on_step_begin(0, [waiting])
    assert conductor.draining == ""
    head = "waiting for {} s: 1 trials, each for 1 CPU and 0 GPU on one node\n  what would help"
    assert told == [head.format(30), head.format(90)]
    brings.append("gpu_worker")  # which an autoscaler can still start
    clock.now += 2
    looking.on_step_begin(0, [waiting])
    assert conductor.draining == ""
    brings.clear()
    clock.now += 1
    looking.on_step_begin(0, [waiting])
    assert conductor.draining == "a trial waits and none has started for 122 s; free are {'CPU': 2.0}"


def test_requests_and_the_tick_come_once_a_second(tmp_path: Path, clock: Clock) -> None:
    conductor: Any = Fake()
    ticks: list[int] = []
    looking = watch(conductor, tmp_path, ticks)
    looking.on_step_begin(0, [])
    requests.ask(tmp_path, None)
    clock.now += 0.5
    looking.on_step_begin(0, [])
    assert (len(ticks), conductor.draining) == (1, "")
    clock.now += 0.6
    looking.on_step_begin(0, [])
    assert (len(ticks), conductor.draining) == (2, requests.USER)


def test_a_lost_attempt_goes_to_the_conductor_with_its_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callbacks, "error_of", lambda trial: trial.error)
    conductor: Any = Fake()
    watch(conductor, tmp_path).on_trial_error(0, [], tune_trial("a", "ERROR", MemoryError("too big")))
    assert conductor.gone == [("a", "oom", "MemoryError: too big")]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("seconds", "failure"), [(59, "infra"), (61, "hang")])
def test_a_process_that_is_gone_after_silence_hung(
    seconds: float, failure: str, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callbacks, "error_of", lambda trial: trial.error)
    conductor: Any = Fake()
    looking, trial = watch(conductor, tmp_path), tune_trial("a", "ERROR", ray.exceptions.ActorDiedError())
    looking.on_trial_start(0, [], trial)
    clock.now += seconds
    looking.on_trial_error(0, [], trial)
    assert [told[:2] for told in conductor.gone] == [("a", failure)]


def test_an_error_of_the_code_leaves_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callbacks, "error_of", lambda trial: trial.error)
    conductor: Any = Fake()
    watch(conductor, tmp_path).on_trial_error(0, [], tune_trial("a", "ERROR", ValueError("line 1\nline 2")))
    (told,) = conductor.gone
    assert told == ("a", "code", "ValueError: line 2; the traceback is in error_1.txt")
    assert (tmp_path / "trials" / "a" / "error_1.txt").read_text() == "line 1\nline 2\n"


def test_tune_may_pickle_and_copy_what_holds_a_lock(tmp_path: Path) -> None:
    conductor: Any = Fake()
    conductor.lock = (x for x in ())  # as little to be pickled as a lock
    looking = watch(conductor, tmp_path)
    for given in (Jobs(conductor), looking, Reports(conductor, looking)):
        assert copy.deepcopy(given) is given
        pickle.dumps(given)
