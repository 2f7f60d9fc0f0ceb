"""A trajectory file as its maker left it: no observations, no rewards, perhaps another control mode or simulator."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import h5py

from offrl_ray.data import hdf5
from offrl_ray.data.guard import Problems, guard
from offrl_ray.errors import UsageError

BACKENDS = {"cpu": "physx_cpu", "gpu": "physx_cuda", "cuda": "physx_cuda", "physx_gpu": "physx_cuda"}
"""What older versions of ManiSkill call them."""
FROM = "pd_joint_pos"
"""The control mode that ManiSkill can convert."""
TO = ("pd_joint_delta_pos", "pd_joint_target_delta_pos", "pd_joint_vel")
"""What it can be converted to, beside everything that moves the end effector."""


class Taken(NamedTuple):
    """An episode as it was recorded."""

    id: int
    seed: int
    steps: int
    success: bool  # at any step


class Raw(NamedTuple):
    path: Path
    digest: str  # SHA-256 over both files
    env_id: str
    control_mode: str
    sim_backend: str
    kind: str  # ManiSkill's source_type
    episodes: tuple[Taken, ...]


def read(path: Path) -> Raw:
    """Raises UsageError with everything that keeps the file from being replayed. Only facts are taken from the .json.

    Its `env_kwargs` and `reset_kwargs` would else decide what is built here.
    """
    problems = Problems(path)
    h5, digest = hdf5.checksums(path, problems)
    meta = hdf5.read_json(path, problems) if h5 else {}
    if not meta or hdf5.is_broken(meta, h5, problems):
        raise UsageError(problems.lines())
    kwargs, episodes = meta["env_info"]["env_kwargs"], tuple[Taken, ...]()
    try:
        with h5py.File(path, "r") as f:
            if guard(f, path, hdf5.MEMORY_BUDGET, problems):
                hdf5.check_counts(f, meta, problems)
                if not problems.count:
                    episodes = tuple(_episodes(f, meta, problems))
    except Exception as e:  # damaged metadata surfaces as almost any exception of h5py's
        why = (str(e) or type(e).__name__).splitlines()[0]
        problems.add(f"not readable as HDF5, truncated or damaged ({why}); copy or fetch it again")
    control = kwargs.get("control_mode")
    if not isinstance(control, str) or any(e.get("control_mode", control) != control for e in meta["episodes"]):
        problems.add(f"all episodes must have one control mode, that of env_kwargs, which is {control!r}")
    if control == hdf5.NATIVE:
        problems.add("is of a gymnasium environment; ManiSkill replays its own only")
    if problems.count:
        raise UsageError(problems.lines())
    kind = str(meta.get("source_type", "unknown"))
    return Raw(path, digest, meta["env_info"]["env_id"], str(control), _backend(kwargs), kind, episodes)


def _backend(kwargs: dict[str, Any]) -> str:
    named = str(kwargs.get("sim_backend", "auto"))
    if named == "auto":
        return "physx_cuda" if kwargs.get("num_envs", 1) not in (1, None) else "physx_cpu"
    return BACKENDS.get(named, named)


def _episodes(f: h5py.File, meta: dict[str, Any], problems: Problems) -> Iterator[Taken]:
    for e in meta["episodes"]:
        name, seed = f"traj_{e['episode_id']}", e.get("episode_seed")
        group = f[name]
        if type(seed) is not int or seed < 0:
            problems.add("episode_seed of the json must be a number >= 0", f"{name}: {seed!r}")
        if not isinstance(group.get("actions"), h5py.Dataset):
            problems.add("actions is missing", name)
        elif not isinstance(group.get("env_states"), h5py.Group):
            problems.add("env_states are missing: there is nothing to start the episode from", name)
        else:
            _check_states(group["env_states"], f"{name}/env_states", problems)
            marks = group.get("success")
            success = bool(marks[()].any()) if isinstance(marks, h5py.Dataset) else bool(e.get("success"))
            yield Taken(e["episode_id"], seed, len(group["actions"]), success)


def _check_states(group: h5py.Group, place: str, problems: Problems) -> None:
    """What `guard` passes over, because nothing but the replayer reads it."""
    for key in group:
        item = group[key] if isinstance(group.get(key, getlink=True), h5py.HardLink) else None
        if isinstance(item, h5py.Group):
            _check_states(item, f"{place}/{key}", problems)
        elif not isinstance(item, h5py.Dataset) or item.external or item.is_virtual or item.dtype.kind != "f":
            problems.add("env_states must be numbers in the file itself", f"{place}/{key}")


def conversion_problems(raw: Raw, control_mode: str, sim_backend: str) -> Iterator[str]:
    """What ManiSkill's replayer cannot do."""
    if raw.control_mode == control_mode:
        return
    asked = f"{raw.path}: control mode is {raw.control_mode!r}"
    if raw.control_mode != FROM or not ("ee" in control_mode or control_mode in TO):
        possible = f"ManiSkill converts {FROM} only, and not to every mode"
        yield f"{asked}, asked for is {control_mode!r}; {possible}; keep it: --control-mode {raw.control_mode}"
    elif sim_backend != "physx_cpu":
        yield f"{asked}; converting it to {control_mode!r} works with --sim-backend physx_cpu only, not {sim_backend}"
