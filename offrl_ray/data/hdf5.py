"""ManiSkill trajectory files (.h5 with a .json beside it) -> checked episodes in memory.

Nothing of a file is trusted: links, virtual or externally stored datasets, object types and declared sizes
beyond the budget are refused before any data is read. All problems of a file are reported together.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from offrl_ray.errors import UsageError

MEMORY_BUDGET = 8 * 2**30
FLAGS = ("success", "terminated", "truncated")
REPLAY = "python -m mani_skill.trajectory.replay_trajectory --traj-path FILE --use-first-env-state -o state -c {control} --record-rewards --reward-mode {reward} --save-traj --allow-failure"  # noqa: E501


@dataclass(frozen=True)
class Episode:
    """T steps; observations have one frame more, the one after the last action."""

    name: str
    obs: dict[str, np.ndarray]  # key -> [T+1, ...] float32
    action: np.ndarray  # [T, A] float32, as executed
    reward: np.ndarray  # [T] float32
    success: np.ndarray  # [T] bool
    terminated: np.ndarray  # [T] bool
    truncated: np.ndarray  # [T] bool

    def __repr__(self) -> str:
        return f"Episode({self.name}, {len(self.action)} steps, {'success' if self.success.any() else 'failure'})"


@dataclass
class Problems:
    """Problems by rule, with the places where each was found, so that a thousand trajectories make one line."""

    path: Path
    found: dict[str, list[str]] = field(default_factory=dict)

    def add(self, rule: str, place: str = "") -> None:
        self.found.setdefault(rule, []).append(place)

    def lines(self) -> list[str]:
        def places(at: list[str]) -> str:
            named = [p for p in at if p]
            return (
                f" [{', '.join(named[:3])}{f' and {len(named) - 3} more' if len(named) > 3 else ''}]" if named else ""
            )

        return [f"{self.path}: {rule}{places(at)}" for rule, at in self.found.items()]


@dataclass(frozen=True)
class TrajectoryFile:
    path: Path
    env_id: str
    env_kwargs: dict[str, Any]
    episodes: tuple[Episode, ...]
    digest: str  # SHA-256 over both files
    problems: list[str]

    def summary(self) -> dict[str, Any]:
        """What is in the file, for people and for `--json`."""
        lengths = [len(e.action) for e in self.episodes]
        actions = np.concatenate([e.action for e in self.episodes]) if self.episodes else np.zeros((0, 0))
        successes = [bool(e.success.any()) for e in self.episodes]
        return {
            "file": str(self.path),
            "digest": self.digest,
            "env_id": self.env_id,
            **{k: self.env_kwargs.get(k) for k in ("control_mode", "obs_mode", "reward_mode", "sim_backend")},
            "episodes": len(self.episodes),
            "steps": int(sum(lengths)),
            "success_rate": float(np.mean(successes)) if successes else None,
            "length": {"min": min(lengths), "mean": float(np.mean(lengths)), "max": max(lengths)} if lengths else None,
            "reward_sum": float(sum(e.reward.sum() for e in self.episodes)),
            "obs": {k: list(v.shape[1:]) for k, v in self.episodes[0].obs.items()} if self.episodes else {},
            "action_low": actions.min(0).tolist() if len(actions) else [],
            "action_high": actions.max(0).tolist() if len(actions) else [],
            "action_std": actions.std(0).tolist() if len(actions) else [],
            "problems": self.problems,
        }


def inspect(
    path: str | Path,
    *,
    control_mode: str = "pd_ee_delta_pose",
    reward_mode: str = "sparse",
    env_id: str | None = None,
    budget: int = MEMORY_BUDGET,
) -> TrajectoryFile:
    """Read what is readable and name everything that is wrong. Raises nothing for a bad file."""
    path = Path(path)
    problems = Problems(path)
    meta = _read_json(path, problems)
    info = meta.get("env_info", {})
    kwargs = info.get("env_kwargs", {})
    if info:
        _check_modes(info, control_mode, reward_mode, env_id, problems)
    episodes: tuple[Episode, ...] = ()
    digest = ""
    if not path.is_file():
        problems.add("no such file; `offrl-ray collect` makes one")
    else:
        digest = _digest(path)
        try:
            with h5py.File(path, "r") as f:
                if _is_safe(f, path, budget, problems):
                    _check_counts(f, meta, problems)
                    episodes = tuple(_episodes(f, problems))
        except OSError as e:
            problems.add(
                f"not readable as HDF5, truncated or damaged ({str(e).splitlines()[0]}); copy or make it again"
            )
    _check_finished(episodes, kwargs.get("control_mode") == control_mode, problems)
    return TrajectoryFile(path, str(info.get("env_id", "")), kwargs, episodes, digest, problems.lines())


def load(paths: list[str], **expect: Any) -> list[TrajectoryFile]:
    """`inspect` each file. Raises UsageError with the problems of all of them."""
    files = [inspect(p, **expect) for p in paths]
    problems = [line for f in files for line in f.problems]
    ids = sorted({f.env_id for f in files if f.env_id})
    if len(ids) > 1:
        problems.append(f"all files must come from one environment, but they come from {', '.join(ids)}")
    if problems:
        raise UsageError(problems)
    return files


def _read_json(path: Path, problems: Problems) -> dict[str, Any]:
    beside = path.with_suffix(".json")
    try:
        meta = json.loads(beside.read_text())
        if not isinstance(meta, dict) or not isinstance(meta.get("env_info", {}).get("env_kwargs"), dict):
            raise ValueError("no env_info.env_kwargs")
        if not isinstance(meta.get("episodes"), list) or not all(isinstance(e, dict) for e in meta["episodes"]):
            raise ValueError("no list of episodes")
        return meta
    except FileNotFoundError:
        problems.add(f"{beside.name} must lie beside it (the official tools write both)")
    except (ValueError, AttributeError, UnicodeDecodeError) as e:
        problems.add(f"{beside.name} is not ManiSkill's: {e}")
    return {}


def _digest(path: Path) -> str:
    sha = hashlib.sha256()
    for part in (path, path.with_suffix(".json")):
        if part.is_file():
            with part.open("rb") as f:
                sha.update(hashlib.file_digest(f, "sha256").digest())
    return sha.hexdigest()


def _check_modes(info: dict[str, Any], control: str, reward: str, env_id: str | None, problems: Problems) -> None:
    got = info["env_kwargs"]
    replay = REPLAY.format(control=control, reward=reward)
    if got.get("control_mode") != control:
        problems.add(
            f"control mode is {got.get('control_mode')!r}, the config says {control!r}; "
            f"replay it ({replay}) or set env.control_mode"
        )
    if got.get("reward_mode") != reward:
        problems.add(
            f"reward mode is {got.get('reward_mode')!r}, the config says {reward!r}; replay it or set env.reward_mode"
        )
    if env_id is not None and info.get("env_id") != env_id:
        problems.add(
            f"environment is {info.get('env_id')!r}, the config says {env_id!r}; set env.id or use another file"
        )
    if got.get("obs_mode") != "state":
        problems.add(f"observation mode is {got.get('obs_mode')!r}, needed is 'state'; replay it: {replay}")


def _is_safe(f: h5py.File, path: Path, budget: int, problems: Problems) -> bool:
    """Walk links without following them out; sum the declared sizes."""
    total, before = 0, len(problems.found)

    def walk(group: h5py.Group, prefix: str) -> None:
        nonlocal total
        for key in group:
            name = f"{prefix}{key}"
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                problems.add("links are refused: they may lead out of the file", name)
                continue
            item = group[key]
            if isinstance(item, h5py.Group):
                walk(item, f"{name}/")
            elif item.external or item.is_virtual:
                problems.add("external and virtual datasets are refused: they read other files", name)
            elif item.dtype.kind not in "fiub":
                problems.add(f"type {item.dtype} is refused; only numbers and booleans are data", name)
            elif name.split("/")[1:2] != ["env_states"]:
                total += item.size * max(item.dtype.itemsize, 4)

    walk(f, "")
    if total > budget:
        problems.add(
            f"declares {total / 2**30:.1f} GiB of data ({path.stat().st_size / 2**30:.3f} GiB on disk), "
            f"the budget is {budget / 2**30:.1f} GiB; split the file"
        )
    return len(problems.found) == before


def _names(f: h5py.File) -> list[str]:
    names = [k for k in f if k.startswith("traj_") and k[5:].isdigit() and isinstance(f[k], h5py.Group)]
    return sorted(names, key=lambda k: int(k[5:]))


def _check_counts(f: h5py.File, meta: dict[str, Any], problems: Problems) -> None:
    names = _names(f)
    if not names:
        problems.add("holds no trajectories (groups traj_0, traj_1, ...)")
    if not meta:
        return
    listed = {f"traj_{e.get('episode_id')}": e for e in meta["episodes"]}
    for name in sorted(set(names) ^ set(listed)):
        problems.add("trajectories of the h5 and episodes of the json must agree; the writer was probably killed", name)
    for name in names:
        steps = listed.get(name, {}).get("elapsed_steps")
        actions = f[name].get("actions")
        if isinstance(actions, h5py.Dataset) and steps is not None and steps != len(actions):
            problems.add(
                "elapsed_steps of the json must equal the number of actions", f"{name}: {steps}, {len(actions)}"
            )


def _episodes(f: h5py.File, problems: Problems) -> Iterator[Episode]:
    shape: tuple[int, ...] | None = None
    for name in _names(f):
        group = f[name]
        missing = [k for k in ("actions", "obs", "rewards", *FLAGS) if not isinstance(group.get(k), h5py.Dataset)]
        for key in missing:
            problems.add(_missing(key), name)
        if missing:
            continue
        arrays = {k: group[k][()] for k in ("actions", "obs", "rewards", *FLAGS)}
        if not _check_arrays(name, arrays, problems):
            continue
        widths = (arrays["obs"].shape[1], arrays["actions"].shape[1])
        shape = shape or widths
        if widths != shape:
            problems.add(
                f"observation and action sizes must be those of the first trajectory, {shape}", f"{name}: {widths}"
            )
            continue
        obs, action, reward = (np.ascontiguousarray(arrays[k], np.float32) for k in ("obs", "actions", "rewards"))
        yield Episode(name, {"state": obs}, action, reward, *(arrays[k].astype(bool) for k in FLAGS))


def _missing(key: str) -> str:
    if key == "rewards":
        return "rewards are missing, offline RL would train on zeros; replay with --record-rewards"
    if key == "obs":
        return "state observations are missing; replay with -o state"
    return f"{key} is missing"


def _check_arrays(name: str, arrays: dict[str, np.ndarray], problems: Problems) -> bool:
    steps, good = len(arrays["actions"]), True
    if steps == 0:
        problems.add("trajectories must have at least one step", name)
        return False
    for key, a in arrays.items():
        ndim, length = (2 if key in ("actions", "obs") else 1), steps + (key == "obs")
        if a.ndim != ndim or len(a) != length:
            problems.add(
                f"{key} must have {ndim} axes and T{'+1' if key == 'obs' else ''} rows", f"{name}: {a.shape}, T={steps}"
            )
            good = False
        if key in FLAGS and a.dtype != bool:
            problems.add(f"{key} must be boolean", f"{name}: {a.dtype}")
            good = False
        elif key not in FLAGS and a.dtype.kind != "f":
            problems.add(f"{key} must be floating point", f"{name}: {a.dtype}")
            good = False
        elif key not in FLAGS and not np.isfinite(a).all():
            at = tuple(int(i) for i in np.argwhere(~np.isfinite(a))[0])
            problems.add(f"{key} must be finite", f"{name}{list(at)} = {a[at]}")
            good = False
    return good


def _check_finished(episodes: tuple[Episode, ...], normalised: bool, problems: Problems) -> None:
    for e in episodes:
        if normalised and (outside := np.abs(e.action) > 1 + 1e-5).any():
            step, dim = (int(i) for i in np.argwhere(outside)[0])
            problems.add(
                "actions must lie in [-1, 1], the controller's range",
                f"{e.name}[{step}, {dim}] = {e.action[step, dim]:.3g}",
            )
        if e.success.any() and not (e.terminated & e.success).any():
            problems.add("a success must be marked `terminated` too: it ends the chunk", e.name)
    if episodes and not any(e.reward.any() for e in episodes):
        problems.add("all rewards are zero: there is nothing to learn a value from; add successful episodes or rewards")
