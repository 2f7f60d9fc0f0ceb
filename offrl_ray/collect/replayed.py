"""A raw file becomes one to train on, by ManiSkill's own replayer: state observations and rewards, in a control mode.

It leaves to its user what goes wrong silently, and that is decided here:
  starts      every episode starts from its first recorded state: a seed gives another start on another simulator
  simulator   a file of another simulator, in the same control mode, is set to its recorded state after every step,
              for its actions alone would lead elsewhere
  cap         the task's own cap does not count: only the last step may be `truncated`
  failures    stay in the file, marked, unless asked otherwise
  actions     are written as the controller executed them, clipped to [-1, 1]
The replayer also writes the second recorded state in place of the first (3.0.1, on a CPU), which is put right.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from offrl_ray.collect.files import Label, Origin, new_files, out_problems, place
from offrl_ray.collect.parts import Ask, Part, ReplayError, run
from offrl_ray.collect.raw import Raw, conversion_problems, read
from offrl_ray.data import hdf5
from offrl_ray.envs.experts import Trajectory
from offrl_ray.envs.maniskill import ManiSkillEnv
from offrl_ray.errors import UsageError


class Summary(NamedTuple):
    out: Path
    raw: Raw
    ask: Ask
    before: int  # episodes that succeeded as recorded
    after: int  # and of the same, as replayed
    number: int  # episodes replayed
    written: int
    clipped: int  # actions with a value outside [-1, 1]
    seconds: float

    def __str__(self) -> str:
        raw, ask = self.raw, self.ask
        text = [
            f"{raw.path.name}: {raw.env_id}, {raw.kind}, {raw.control_mode} on {raw.sim_backend}",
            f"replayed in {ask.control_mode} on {ask.sim_backend}: {self.after} of {self.number} episodes succeed, "
            f"as recorded {self.before}",
        ]
        if raw.sim_backend != ask.sim_backend:
            text.append(f"note: recorded on another simulator, {raw.sim_backend}; evaluate on {ask.sim_backend}")
        if self.clipped:
            text.append(f"note: {self.clipped} actions reached outside [-1, 1], they are written as executed")
        if 2 * self.after < self.before:
            text.append("note: more than half of the successes were lost, see whether the rest is what you want")
        return "\n".join([*text, f"{self.out}: {self.written} episodes in {self.seconds:.0f} s"])


class Replayed(NamedTuple):
    label: Label
    trajectory: Trajectory
    clipped: int


def replay(path: Path, out: Path, ask: Ask, progress: Callable[[str], None]) -> Summary:
    """Write `out` (.h5) and its .json, complete or not at all. Raises UsageError before anything is started.

    `progress` receives a line every few seconds. Raises ReplayError.
    """
    raw, start = _checked(path, out, ask), time.monotonic()
    taken = raw.episodes[: ask.episodes]
    with tempfile.TemporaryDirectory(prefix=f".{out.stem}.", dir=out.parent) as work:
        made = [e for part in run(raw, taken, ask, Path(work), progress) for e in _read(raw, ask, part)]
        kept = [e for e in made if e.trajectory.success.any() or not ask.only_successes]
        after = sum(bool(e.trajectory.success.any()) for e in made)
        before = sum(t.success for t in taken)
        if not kept or (before and not after):
            raise ReplayError(
                f"{path}: none of {len(made)} episodes succeeds, as recorded {before} did; nothing written"
            )
        new = Path(work, "new.h5")
        with new_files(new, _origin(raw, ask, kept), [e.label for e in kept]) as add:
            for e in kept:
                add(e.trajectory)
        if problems := hdf5.inspect(new, control_mode=ask.control_mode, reward_mode=ask.reward_mode).problems:
            raise ReplayError("\n".join(p.replace(str(new), str(path)) for p in problems))
        place(new, new.with_suffix(".json"), out)
    clipped, seconds = sum(e.clipped for e in made), time.monotonic() - start
    return Summary(out, raw, ask, before, after, len(made), len(kept), clipped, seconds)


def _checked(path: Path, out: Path, ask: Ask) -> Raw:
    """Every problem at once; building the environment once finds those of its modes."""
    problems = list(out_problems(out))
    for name, number in (("--episodes", ask.episodes), ("--workers", ask.workers)):
        if number is not None and number < 1:
            problems.append(f"{name} must be at least 1, but got {number}")
    if ask.workers is not None and ask.sim_backend != "physx_cpu":
        problems.append(f"--workers are processes of physx_cpu, but the simulator is {ask.sim_backend}")
    if ask.reward_mode == "none":
        problems.append("--reward-mode must record rewards, but got 'none'; sparse is what sweeps train on")
    try:
        raw = read(path)
    except UsageError as e:
        raise UsageError(problems + e.problems) from None
    problems += conversion_problems(raw, ask.control_mode, ask.sim_backend)
    try:
        with closing(ManiSkillEnv(raw.env_id, ask.control_mode, "state", ask.reward_mode, ask.sim_backend)):
            pass
    except UsageError as e:
        problems += e.problems
    if problems:
        raise UsageError(problems)
    return raw


def _read(raw: Raw, ask: Ask, part: Part) -> Iterator[Replayed]:
    beside, episodes = part.result()
    if len(episodes) != len(part.taken):
        raise ReplayError(f"{raw.path}: ManiSkill's replayer left out {len(part.taken) - len(episodes)} episodes")
    with h5py.File(raw.path, "r") as before, h5py.File(beside.with_suffix(".h5"), "r") as after:
        for taken, episode in zip(part.taken, episodes, strict=True):
            group = after[f"traj_{episode['episode_id']}"]
            if "success" not in group:
                raise ReplayError(f"{raw.path}: {raw.env_id} defines no success, and nothing here trains without one")
            states = {kind: {n: b[()] for n, b in bodies.items()} for kind, bodies in group["env_states"].items()}
            if ask.sim_backend == "physx_cpu":
                for kind, bodies in before[f"traj_{taken.id}/env_states"].items():
                    for name, body in bodies.items():
                        states[kind][name][0] = body[0]
            yield _replayed(int(episode["episode_seed"]), group, states, ask)


def _replayed(seed: int, group: h5py.Group, states: dict[str, dict[str, np.ndarray]], ask: Ask) -> Replayed:
    raw = group["actions"][()]
    actions = executed(raw, ask.control_mode)
    clipped = int((np.abs(raw) > 1).any(axis=1).sum())
    obs, success, terminated = group["obs"][()], group["success"][()], group["terminated"][()]
    truncated = np.zeros_like(terminated)
    truncated[-1] = not terminated[-1]
    t = Trajectory(obs, actions, group["rewards"][()], success, terminated, truncated, states)
    return Replayed(Label(seed, {}), t, clipped)


def executed(actions: np.ndarray, control_mode: str) -> np.ndarray:
    """Actions [T, A] as ManiSkill's controllers limit them: every value, but of a rotation its norm."""
    limited = np.clip(actions, -1, 1)
    if control_mode.endswith("delta_pose"):
        far = (np.abs(actions[:, 3:6]) > 1).any(axis=1)
        turns = actions[far, 3:6]
        limited[far, 3:6] = turns / np.linalg.norm(turns, axis=1, keepdims=True)
    return limited


def _origin(raw: Raw, ask: Ask, kept: Sequence[Replayed]) -> Origin:
    longest = max(len(e.trajectory.actions) for e in kept)
    text = f"replayed by mani_skill {version('mani_skill')} from {raw.control_mode} on {raw.sim_backend}, {raw.digest}"
    return Origin(raw.env_id, longest, ask.control_mode, ask.reward_mode, ask.sim_backend, 0, raw.kind, text)
