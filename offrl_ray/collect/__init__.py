"""Demonstrations in ManiSkill's trajectory layout: a scripted expert's, or all that an online learner lives through."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from offrl_ray.collect import learner, scripted
from offrl_ray.collect.files import Label, Maker, new_files, out_problems
from offrl_ray.envs.experts import EXPERTS
from offrl_ray.errors import UsageError, did_you_mean

SEED_END = 2**32  # numpy's RandomState, which ManiSkill seeds, takes no more


class Outcome(NamedTuple):
    steps: int
    success: bool
    ret: float


class NoiseLevel(NamedTuple):
    noise: float | None  # None: a learner's, who has no levels
    episodes: int
    successes: int
    steps: int
    ret: float  # sum over episodes

    def __str__(self) -> str:
        level = "" if self.noise is None else f"noise {self.noise:g}: "
        return (
            f"{level}{self.episodes} episodes, success {self.successes / self.episodes:.0%}, "
            f"mean length {self.steps / self.episodes:.1f}, mean return {self.ret / self.episodes:.4g}"
        )


class CollectSummary(NamedTuple):
    out: Path
    levels: tuple[NoiseLevel, ...]
    seconds: float

    def __str__(self) -> str:
        steps = sum(level.steps for level in self.levels)
        return "\n".join([*map(str, self.levels), f"{self.out}: {steps} steps in {self.seconds:.0f} s"])


def _problems(
    env_id: str, episodes: int, noise: Sequence[float], seed: int, out: Path, workers: int | None, max_steps: int
) -> Iterator[str]:
    known = [*EXPERTS, *learner.NUM_ACTIONS]
    if env_id not in known:
        yield f"env_id must have a scripted expert or a learner, but got {env_id!r}; {did_you_mean(env_id, known)}"
    for name, number in (("episodes", episodes), ("max_steps", max_steps)):
        if number < 1:
            yield f"{name} must be at least 1, but got {number}"
    yield from _maker(env_id).problems(noise, workers)
    if seed < 0 or seed + episodes > SEED_END:
        yield f"the episodes' seeds must lie in [0, 2**32), but got seed {seed} for {episodes} episodes"
    yield from out_problems(out)


def _maker(env_id: str) -> Maker:
    return learner.MAKER if env_id in learner.NUM_ACTIONS else scripted.MAKER


def _progress_line(outcomes: Sequence[Outcome], total: int, seconds: float) -> str:
    """`seconds` since the first result, so that starting the simulators does not count."""
    done = len(outcomes)
    success, ret = (sum(column) / done for column in list(zip(*outcomes, strict=True))[1:])
    speed = sum(o.steps for o in outcomes[1:]) / max(seconds, 1e-9)
    eta = seconds / max(1, done - 1) * (total - done)
    return f"{done}/{total} episodes, success {success:.0%}, return {ret:.4g}, {speed:.0f} steps/s, ETA {eta:.0f} s"


def _levels(labels: Sequence[Label], outcomes: Sequence[Outcome]) -> tuple[NoiseLevel, ...]:
    levels: dict[float | None, NoiseLevel] = {}
    for label, o in zip(labels, outcomes, strict=True):
        noise = label.facts.get("noise")
        _, episodes, successes, steps, ret = levels.get(noise, NoiseLevel(noise, 0, 0, 0, 0.0))
        levels[noise] = NoiseLevel(noise, episodes + 1, successes + o.success, steps + o.steps, ret + o.ret)
    return tuple(levels.values())


def collect(
    env_id: str,
    episodes: int,
    noise: Sequence[float],
    seed: int,
    out: Path,
    workers: int | None = None,
    max_steps: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> CollectSummary:
    """Write `episodes` episodes to `out` (.h5) and its .json; failed ones are kept and marked.

    Episode i runs from environment seed `seed + i`. A scripted expert's has noise level `noise[i % len(noise)]`, the
    standard deviation of the noise added to actions in [-1, 1]; the files do not depend on `workers`. A learner takes
    neither. The files appear complete or not at all. `progress` receives a line about once a second. Raises UsageError
    before anything is started or written.
    """
    maker = _maker(env_id)
    max_steps = maker.max_steps if max_steps is None else max_steps
    if problems := list(_problems(env_id, episodes, noise, seed, out, workers, max_steps)):
        raise UsageError(problems)
    origin, labels = maker.origin(env_id, max_steps), maker.labels(episodes, noise, seed)
    outcomes: list[Outcome] = []
    start = time.monotonic()
    with (
        new_files(out, origin, labels) as add,
        closing(maker.trajectories(origin, labels, seed, workers)) as trajectories,
    ):
        for i, t in enumerate(trajectories):
            add(t)
            outcomes.append(Outcome(len(t.actions), bool(t.success[-1]), float(t.rewards.sum())))
            now = time.monotonic()
            if i == 0:
                first = shown = now
            if progress and (now - shown >= 1 or i + 1 == episodes):
                progress(_progress_line(outcomes, episodes, now - first))
                shown = now
    return CollectSummary(out, _levels(labels, outcomes), time.monotonic() - start)
