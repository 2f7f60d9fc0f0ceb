"""A trial's line to evaluation actors that do not answer, with a Ray of pencil and paper."""

from types import SimpleNamespace
from typing import Any

import pytest
import ray

from offrl_ray.distributed import evaluators
from offrl_ray.distributed.evaluators import ANSWER_SECONDS, LOOK_SECONDS, RETRIES, RayEvaluator

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


def of(step: int) -> Any:
    return SimpleNamespace(step=step, digest="d")


def asked(paper: Paper, *names: str) -> list[str]:
    """Which actors were asked to evaluate, in order."""
    return [ref.split()[0] for ref in paper.asked if "evaluate" in ref and (not names or ref.startswith(names))]


def seconds(paper: Paper, line: RayEvaluator, n: float, silent: set[str]) -> list[Any]:
    """Let time pass; all actors but the silent ones answer how busy they are."""
    results = []
    for _ in range(int(n)):
        paper.now += 1
        paper.answers |= {ref: 0.0 for ref in paper.looks() if ref.split()[0] not in silent}
        results += line.poll(0)
    return results


def test_what_an_actor_that_is_down_was_asked_goes_to_others_and_costs_no_attempt(paper: Paper) -> None:
    """Its node is gone: Ray keeps its questions until it has another place, which may be never."""
    line = RayEvaluator(["a", "b", "c"], "here", 2, LIMIT)
    line.submit(of(1))
    assert asked(paper) == ["a"]
    assert seconds(paper, line, LOOK_SECONDS + ANSWER_SECONDS + 2, {"a"}) == []
    assert asked(paper) == ["a", "b"]
    for step in range(2, 6):
        line.submit(of(step))
    assert "a" not in asked(paper)[2:]
    assert paper.killed == []
    paper.answers |= dict.fromkeys(paper.asked[1:], 0.0)
    seconds(paper, line, 2 * LOOK_SECONDS, set())
    line.submit(of(6))
    line.submit(of(7))
    line.submit(of(8))
    assert "a" in asked(paper)[-3:]


def test_an_actor_that_is_down_for_long_may_be_frozen_and_is_killed(paper: Paper) -> None:
    line = RayEvaluator(["a", "b"], "here", 1, LIMIT)
    line.submit(of(1))
    seconds(paper, line, LOOK_SECONDS + ANSWER_SECONDS + 2, {"a"})
    assert paper.killed == []
    seconds(paper, line, LIMIT + LOOK_SECONDS + ANSWER_SECONDS + 2, {"a"})
    assert paper.killed == ["a"]


def test_when_all_are_down_evaluations_wait_for_them(paper: Paper) -> None:
    line = RayEvaluator(["a", "b"], "here", 1, 10 * LIMIT)
    line.submit(of(1))
    line.submit(of(2))
    assert seconds(paper, line, LIMIT, {"a", "b"}) == []
    assert (line.pending, len(asked(paper))) == (2, 3)


def test_an_evaluation_that_takes_every_actor_down_is_lost_in_the_end(paper: Paper) -> None:
    line = RayEvaluator(list("abcdefghijklmn"), "here", 13, 100 * LIMIT)
    line.submit(of(1))
    results = []
    for _ in range((RETRIES + 1) ** 2):
        last = asked(paper)[-1]
        results += seconds(paper, line, LOOK_SECONDS + ANSWER_SECONDS + 2, set(asked(paper)))
        assert last in asked(paper)
    assert [r.error for r in results] == [f"attempt {i}: its evaluator does not answer" for i in (1, 2, 3)]
    assert line.pending == 0
    assert len(asked(paper)) == (RETRIES + 1) ** 2


def test_evaluations_that_an_unreachable_actor_refused_go_to_others(paper: Paper) -> None:
    line = RayEvaluator(["a", "b"], "here", 1, LIMIT)
    line.submit(of(1))
    gone = ray.exceptions.ActorUnavailableError("it cannot be reached", None)
    for second in range(ANSWER_SECONDS + 1):
        paper.now = float(second)
        paper.answers = dict.fromkeys((ref for ref in paper.asked if ref.startswith("a")), gone)
        assert line.poll(0) == []
    assert asked(paper) == ["a", "b"]
