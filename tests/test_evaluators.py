"""A trial's line to evaluation actors that do not answer, with a Ray of pencil and paper."""

from types import SimpleNamespace
from typing import Any

import pytest
import ray

from offrl_ray.distributed import evaluators
from offrl_ray.distributed.evaluators import ANSWER_SECONDS, RayEvaluator

LIMIT = 100.0


class Paper:
    """Refs are names; `answers` holds what has come, `killed` which actors were. Nothing here ever waits."""

    exceptions = ray.exceptions

    def __init__(self) -> None:
        self.answers, self.killed, self.asked, self.now = dict[str, Any](), list[str](), list[str](), 0.0

    def get_actor(self, name: str, namespace: str) -> Any:
        def method(what: str) -> Any:
            def remote(*args: Any) -> str:
                self.asked.append(f"{name} {what} {len(self.asked)}")
                return self.asked[-1]

            return SimpleNamespace(remote=remote)

        return SimpleNamespace(name=name, evaluate=method("evaluate"), busy=method("busy"))

    def wait(self, refs: list[str], num_returns: int = 1, timeout: float = 0) -> tuple[list[str], list[str]]:
        return [r for r in refs if r in self.answers], [r for r in refs if r not in self.answers]

    def get(self, ref: str) -> Any:
        if isinstance(self.answers[ref], Exception):
            raise self.answers[ref]
        return self.answers[ref]

    def sleep(self, seconds: float) -> None: ...

    def kill(self, actor: Any, no_restart: bool) -> None:
        assert not no_restart
        self.killed.append(actor.name)

    def monotonic(self) -> float:
        return self.now

    def looks(self) -> list[str]:
        return [ref for ref in self.asked if "busy" in ref]


@pytest.fixture
def paper(monkeypatch: pytest.MonkeyPatch) -> Paper:
    paper = Paper()
    monkeypatch.setattr(evaluators, "ray", paper)
    monkeypatch.setattr(evaluators, "time", paper)
    return paper


@pytest.fixture
def late(paper: Paper) -> RayEvaluator:
    """Three evaluations of one actor, all over their time."""
    line = RayEvaluator(["a"], "here", 0, LIMIT)
    for step in (1, 2, 3):
        line.submit(SimpleNamespace(step=step, digest="d"))  # type: ignore[arg-type]
    paper.now = LIMIT + 1
    assert line.poll(0) == []
    return line


def test_a_frozen_actor_is_asked_once_and_killed_once_for_all_that_wait(paper: Paper, late: RayEvaluator) -> None:
    assert len(paper.looks()) == 1
    paper.now += ANSWER_SECONDS - 1
    assert late.poll(0) == []
    assert paper.killed == []
    paper.now += 1
    (lost,) = late.poll(0)
    assert (lost.step, lost.error) == (1, "attempt 1: no answer in 100 s")
    assert paper.killed == ["a"]
    assert late.pending == 3
    assert late.poll(0) == []
    assert len(paper.looks()) == 1


def test_an_actor_that_works_on_others_is_given_time(paper: Paper, late: RayEvaluator) -> None:
    paper.answers[paper.looks()[0]] = LIMIT - 1
    assert late.poll(0) == []
    assert (paper.killed, late.pending) == ([], 3)
    paper.now += LIMIT + 1
    late.poll(0)
    assert len(paper.looks()) == 2


def test_an_actor_too_long_on_one_evaluation_is_killed(paper: Paper, late: RayEvaluator) -> None:
    paper.answers[paper.looks()[0]] = LIMIT + 1
    (lost,) = late.poll(0)
    assert lost.step == 1
    assert paper.killed == ["a"]


def test_evaluations_wait_until_an_actor_that_cannot_be_reached_is_another_one(paper: Paper) -> None:
    """Frozen long enough, an actor refuses every call at once: asking again would use up all attempts in a second."""
    line = RayEvaluator(["a"], "here", 0, LIMIT)
    line.submit(SimpleNamespace(step=1, digest="d"))  # type: ignore[arg-type]
    gone = ray.exceptions.ActorUnavailableError("it cannot be reached", None)
    for second in range(ANSWER_SECONDS):
        paper.now = float(second)
        paper.answers = dict.fromkeys(paper.asked, gone)
        assert (line.poll(0), line.pending, paper.killed) == ([], 1, [])
    paper.now = float(ANSWER_SECONDS)
    paper.answers = dict.fromkeys(paper.asked, gone)
    (lost,) = line.poll(0)
    assert lost.error == "attempt 1: its evaluator could not be reached"
    assert (line.pending, paper.killed) == (1, ["a"])
    assert sum("evaluate" in ref for ref in paper.asked) == 2
