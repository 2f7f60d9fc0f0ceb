"""ManiSkill trajectory files (.h5 with a .json beside it) -> checked episodes in memory.

Nothing of a file is trusted (guard.py), and all problems of a file are reported together.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from offrl_ray.data import seal
from offrl_ray.data.guard import TRAJECTORY, Problems, guard
from offrl_ray.errors import UsageError

MEMORY_BUDGET = 8 * 2**30
NATIVE = "native"  # control and reward mode of gymnasium's own environments, which have but one
FLAGS = ("success", "terminated", "truncated")
KEYS = ("actions", "obs", "rewards", *FLAGS)


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


@dataclass(frozen=True)
class TrajectoryFile:
    path: Path
    env_id: str
    env_kwargs: dict[str, Any]
    episodes: tuple[Episode, ...]
    digest: str  # SHA-256 over both files
    num_actions: int  # discrete actions; 0: continuous
    problems: list[str]

    def summary(self) -> dict[str, Any]:
        """What is in the file, for people and for `--json`."""
        lengths = [len(e.action) for e in self.episodes]
        actions = np.concatenate([e.action for e in self.episodes]).astype(float) if self.episodes else np.zeros((0, 0))
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
            "reward_sum": float(sum(e.reward.sum(dtype=float) for e in self.episodes)),
            "obs": {k: list(v.shape[1:]) for k, v in self.episodes[0].obs.items()} if self.episodes else {},
            "action_low": actions.min(0).tolist() if len(actions) else [],
            "action_high": actions.max(0).tolist() if len(actions) else [],
            "action_std": actions.std(0).tolist() if len(actions) else [],
            "problems": self.problems,
        }


def inspect(
    path: str | Path,
    *,
    control_mode: str | None = "pd_ee_delta_pose",
    reward_mode: str | None = "sparse",
    env_id: str | None = None,
    rewards: bool = True,
    budget: int = MEMORY_BUDGET,
) -> TrajectoryFile:
    """Read what is readable and name everything that is wrong. Raises nothing for a bad file.

    A mode that is None is the file's own. Where `rewards` are not needed a file may be without; they are zero then.
    """
    path = Path(path)
    problems = Problems(path)
    h5, digest = checksums(path, problems)
    meta = read_json(path, problems) if h5 else {}
    if not h5 or is_broken(meta, h5, problems):
        return TrajectoryFile(path, "", {}, (), digest, 0, problems.lines())
    info = meta.get("env_info", {})
    kwargs = info.get("env_kwargs", {})
    num_actions = _num_actions(info, problems)
    control_mode, reward_mode = control_mode or _own(kwargs, "control_mode"), reward_mode or _own(kwargs, "reward_mode")
    if info:
        _check_modes(info, control_mode, reward_mode if rewards else None, env_id, problems)
    episodes = _read_h5(path, meta, rewards, budget, problems)
    if kwargs.get("reward_mode") != NATIVE:  # there a success is a judgement on the return, and may end at the cap
        _check_success(episodes, problems)
    if num_actions:
        _check_indices(episodes, num_actions, problems)
    elif kwargs.get("control_mode") == control_mode:
        _check_range(episodes, problems)
    if rewards and episodes and not any(e.reward.any() for e in episodes):
        problems.add("all rewards are zero: there is nothing to learn a value from; add successful episodes or rewards")
    return TrajectoryFile(path, str(info.get("env_id", "")), kwargs, episodes, digest, num_actions, problems.lines())


def load(paths: list[str], **expect: Any) -> list[TrajectoryFile]:
    """`inspect` each file. Raises UsageError with the problems of all of them."""
    files = [inspect(p, **expect) for p in paths]
    problems = [line for f in files for line in f.problems]
    ids = sorted({f.env_id for f in files if f.env_id})
    if len(ids) > 1:
        problems.append(f"all files must come from one environment, but they come from {', '.join(ids)}")
    widths = {_widths(f.episodes[0]) for f in files if f.episodes}
    if len(widths) > 1:
        problems.append(f"all files must have the same observation and action sizes, but they have {sorted(widths)}")
    if len(kinds := {f.num_actions for f in files if f.episodes}) > 1:
        problems.append(f"all files must have the same number of discrete actions, but they have {sorted(kinds)}")
    if problems:
        raise UsageError(problems)
    return files


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False


def read_json(path: Path, problems: Problems) -> dict[str, Any]:
    """What lies beside the .h5: env_info with env_id and env_kwargs, and episodes; empty if it is not ManiSkill's."""
    beside = path.with_suffix(".json")
    try:
        meta = json.loads(beside.read_text())
        info = meta["env_info"]
        if not isinstance(info["env_kwargs"], dict) or not isinstance(info["env_id"], str):
            raise ValueError("env_info must have env_id and env_kwargs")
        if not isinstance(meta["episodes"], list) or not all(isinstance(e, dict) for e in meta["episodes"]):
            raise ValueError("episodes must be a list of objects")
        return meta
    except FileNotFoundError:
        problems.add(f"{beside.name} must lie beside it; the official tools write both")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
        problems.add(f"{beside.name} is not ManiSkill's: {e}")
    return {}


def checksums(path: Path, problems: Problems) -> tuple[str, str]:
    """SHA-256 of the .h5, and over both files; empty if there is none or it cannot be read."""
    if not _is_file(path):
        problems.add("no such file; `offrl-ray collect` and `offrl-ray data fetch` make one")
        return "", ""
    try:
        parts = [seal.sha256(p) for p in (path, path.with_suffix(".json")) if p.is_file()]
    except OSError as e:
        problems.add(f"cannot be read: {e}")
        return "", ""
    return parts[0], hashlib.sha256(b"".join(map(bytes.fromhex, parts))).hexdigest()


def is_broken(meta: dict[str, Any], h5: str, problems: Problems) -> bool:
    """True if the files differ from the checksums in the json, whose values are not worth a look then."""
    try:
        lines = list(seal.broken(meta, h5))
    except RecursionError:  # the reader of JSON goes a little deeper than the writer
        lines = ["the .json is nested too deeply"]
    for line in lines:
        problems.add(line)
    return bool(lines)


def _read_h5(path: Path, meta: dict[str, Any], rewards: bool, budget: int, problems: Problems) -> tuple[Episode, ...]:
    try:
        with h5py.File(path, "r") as f:
            if guard(f, path, budget, problems):
                check_counts(f, meta, problems)
                return tuple(_episodes(f, rewards, problems))
    except Exception as e:  # damaged metadata surfaces as almost any exception of h5py's
        why = (str(e) or type(e).__name__).splitlines()[0]
        problems.add(f"not readable as HDF5, truncated or damaged ({why}); copy or make it again")
    return ()


def _num_actions(info: dict[str, Any], problems: Problems) -> int:
    """Of a gymnasium environment with discrete actions, which `collect` notes down; ManiSkill has none."""
    number = info.get("num_actions", 0)
    if isinstance(number, int) and number >= 0:
        return number
    problems.add(f"env_info.num_actions must be a number of discrete actions, but is {number!r}")
    return 0


def _own(kwargs: dict[str, Any], mode: str) -> str:
    """A mode as the file names it, or as this program's demonstrations have it."""
    own = kwargs.get(mode)
    return own if isinstance(own, str) else {"control_mode": "pd_ee_delta_pose", "reward_mode": "sparse"}[mode]


def _check_modes(
    info: dict[str, Any], control: str, reward: str | None, env_id: str | None, problems: Problems
) -> None:
    got = info["env_kwargs"]
    trained = f" --control-mode {control}" if control != got.get("control_mode") else ""  # raw files are in others
    rewards = f" --reward-mode {reward}" if reward not in (None, "none") else ""
    replay = f"offrl-ray data replay FILE.h5 --out NEW.h5{trained}{rewards}"
    mend = f"replay it ({replay}) or set env.control_mode", "replay it or set env.reward_mode"
    if NATIVE in (control, got.get("control_mode")):
        mend = ("choose another file or variant",) * 2
    if got.get("control_mode") != control:
        problems.add(f"control mode is {got.get('control_mode')!r}, the config says {control!r}; {mend[0]}")
    if reward is not None and got.get("reward_mode") != reward:
        problems.add(f"reward mode is {got.get('reward_mode')!r}, the config says {reward!r}; {mend[1]}")
    if env_id is not None and info.get("env_id") != env_id:
        problems.add(
            f"environment is {info.get('env_id')!r}, the config says {env_id!r}; set env.id or use another file"
        )
    if got.get("obs_mode") != "state":
        problems.add(f"observation mode is {got.get('obs_mode')!r}, needed is 'state'; replay it: {replay}")


def _names(f: h5py.File) -> list[str]:
    return sorted((k for k in f if TRAJECTORY.match(k)), key=lambda k: int(k[5:]))


def check_counts(f: h5py.File, meta: dict[str, Any], problems: Problems) -> None:
    """Trajectories and episodes must name each other, with as many actions as steps."""
    names = _names(f)
    if not names:
        problems.add("holds no trajectories (groups traj_0, traj_1, ...)")
    if not meta:
        return
    listed = {f"traj_{e.get('episode_id')}": e for e in meta["episodes"]}
    for name in sorted(set(names) ^ set(listed)):
        problems.add("trajectories of the h5 and episodes of the json must agree; the writer was probably killed", name)
    for name in names:
        steps, actions = listed.get(name, {}).get("elapsed_steps"), f[name].get("actions")
        length = actions.shape[0] if isinstance(actions, h5py.Dataset) and actions.shape else None
        if length is not None and steps is not None and steps != length:
            problems.add("elapsed_steps of the json must equal the number of actions", f"{name}: {steps}, {length}")


def _episodes(f: h5py.File, rewards: bool, problems: Problems) -> Iterator[Episode]:
    first: tuple[int, int] | None = None
    for name in _names(f):
        group, before = f[name], problems.count
        present = [k for k in KEYS if isinstance(group.get(k), h5py.Dataset)]
        for key in KEYS:
            if key not in present and (rewards or key != "rewards"):
                problems.add(_missing(key), name)
        arrays = {k: _read(group[k]) for k in present}
        if not rewards and "actions" in arrays:
            arrays.setdefault("rewards", np.zeros(len(arrays["actions"]), np.float32))
        _check_arrays(name, arrays, problems)
        if problems.count > before:
            continue
        episode = Episode(name, {"state": arrays["obs"]}, *(arrays[k] for k in KEYS if k != "obs"))
        first = first or _widths(episode)
        if _widths(episode) == first:
            yield episode
        else:
            rule = f"observation and action sizes must be those of the first trajectory, {first}"
            problems.add(rule, f"{name}: {_widths(episode)}")


def _widths(e: Episode) -> tuple[int, int]:
    return e.obs["state"].shape[1], e.action.shape[1]


def _read(dataset: h5py.Dataset) -> np.ndarray:
    array = np.asarray(dataset[()])
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is named as such
        return np.ascontiguousarray(array, np.float32) if array.dtype.kind == "f" and array.ndim else array


def _missing(key: str) -> str:
    if key == "rewards":
        return "rewards are missing, offline RL would train on zeros; `offrl-ray data replay` records them"
    if key == "obs":
        return "state observations are missing; `offrl-ray data replay` records them"
    return f"{key} is missing"


def _check_arrays(name: str, arrays: dict[str, np.ndarray], problems: Problems) -> None:
    actions = arrays.get("actions")
    steps = len(actions) if actions is not None and actions.ndim else None
    if steps == 0:
        problems.add("trajectories must have at least one step", name)
        return
    for key, a in arrays.items():
        ndim, extra = (2 if key in ("actions", "obs") else 1), int(key == "obs")
        if a.ndim != ndim or (steps is not None and len(a) != steps + extra) or 0 in a.shape[1:]:
            rule = f"{key} must have {ndim} axes, T{'+1' * extra} rows and at least one column"
            problems.add(rule, f"{name}: {a.shape}, T={steps}")
        if key in FLAGS and a.dtype != bool:
            problems.add(f"{key} must be boolean", f"{name}: {a.dtype}")
        elif key not in FLAGS and a.dtype.kind != "f":
            problems.add(f"{key} must be floating point", f"{name}: {a.dtype}")
        elif key not in FLAGS and not np.isfinite(a).all():
            at = tuple(int(i) for i in np.argwhere(~np.isfinite(a))[0])
            problems.add(f"{key} must be finite", f"{name}{list(at)} = {a[at]}")


def _check_range(episodes: tuple[Episode, ...], problems: Problems) -> None:
    for e in episodes:
        if (outside := np.abs(e.action) > 1 + 1e-5).any():
            step, dim = (int(i) for i in np.argwhere(outside)[0])
            place = f"{e.name}[{step}, {dim}] = {e.action[step, dim]:.3g}"
            problems.add("actions must lie in [-1, 1], the controller's range", place)


def _check_indices(episodes: tuple[Episode, ...], num_actions: int, problems: Problems) -> None:
    for e in episodes:
        if e.action.shape[1] != 1 or not np.isin(e.action, np.arange(num_actions)).all():
            problems.add(f"actions must be one index each, 0 to {num_actions - 1}", e.name)


def _check_success(episodes: tuple[Episode, ...], problems: Problems) -> None:
    for e in episodes:
        if e.success.any() and not (e.terminated & e.success).any():
            problems.add("a success must be marked `terminated` too: it ends the chunk", e.name)
