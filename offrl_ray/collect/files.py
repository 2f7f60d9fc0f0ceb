"""Episodes in ManiSkill's trajectory layout: an .h5 with a .json beside it."""

import json
import os
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import h5py

from offrl_ray.data.seal import sealed, sha256
from offrl_ray.envs.experts import Trajectory
from offrl_ray.records import sync


class Origin(NamedTuple):
    """Where all episodes of a file come from."""

    env_id: str
    max_steps: int
    control_mode: str
    reward_mode: str
    sim_backend: str
    num_actions: int  # discrete actions; 0: continuous
    kind: str  # ManiSkill's source_type
    text: str


class Label(NamedTuple):
    """What is known of an episode before it is lived."""

    seed: int
    facts: Mapping[str, Any]


class Maker(NamedTuple):
    """A way to make demonstrations; `noise` and `workers` are as the user gave them, or empty."""

    max_steps: int  # by default
    problems: Callable[[Sequence[float], int | None], Iterator[str]]
    origin: Callable[[str, int], Origin]  # of an environment and its max_steps
    labels: Callable[[int, Sequence[float], int], list[Label]]  # of so many episodes, from a seed on
    trajectories: Callable[[Origin, Sequence[Label], int, int | None], Generator[Trajectory, None, None]]


Add = Callable[[Trajectory], None]


@contextmanager
def new_files(out: Path, origin: Origin, labels: Sequence[Label]) -> Iterator[Add]:
    """Takes one trajectory per label; `out` and its .json appear when all is well at the end, or not at all."""
    with tempfile.TemporaryDirectory(prefix=f".{out.stem}.", dir=out.parent) as folder:
        new_h5, new_json = Path(folder, "h5"), Path(folder, "json")
        episodes: list[dict[str, Any]] = []
        with h5py.File(new_h5, "w") as file:

            def add(trajectory: Trajectory) -> None:
                i = len(episodes)
                _write(file.create_group(f"traj_{i}"), trajectory)
                episodes.append(_episode(i, labels[i], trajectory, origin))

            yield add
        meta = sealed(_metadata(origin, episodes), sha256(new_h5))
        new_json.write_text(json.dumps(meta, indent=1) + "\n")
        sync(new_h5)
        sync(new_json)
        place(new_h5, new_json, out)


def place(h5: Path, beside: Path, out: Path) -> None:
    """Move a finished .h5 and its .json, of the same file system, to where they belong."""
    beside.rename(out.with_suffix(".json"))
    h5.rename(out)  # last, so that no h5 is ever without its json
    sync(out.parent)


def out_problems(out: Path) -> Iterator[str]:
    """What speaks against writing `out` and its .json."""
    if out.suffix != ".h5":
        yield f"out must end in .h5, but got {out}"
    if not (out.parent.is_dir() and os.access(out.parent, os.W_OK)):
        yield f"out must lie in an existing folder that can be written to, but got {out}"
    for path in sorted({out, out.with_suffix(".json")}):
        if path.exists():
            yield f"out must be new, but {path} exists; remove it or choose another name"


def _write(group: h5py.Group, trajectory: Trajectory) -> None:
    for name, array in trajectory._asdict().items():
        if name != "env_states":
            group[name] = array
    for kind, bodies in trajectory.env_states.items():
        for name, array in bodies.items():
            group[f"env_states/{kind}/{name}"] = array


def _episode(i: int, label: Label, trajectory: Trajectory, origin: Origin) -> dict[str, Any]:
    return {
        "episode_id": i,
        "episode_seed": label.seed,
        "control_mode": origin.control_mode,
        "elapsed_steps": len(trajectory.actions),
        "reset_kwargs": {"options": None, "seed": label.seed},
        "success": bool(trajectory.success[-1]),
        **label.facts,
    }


def _metadata(origin: Origin, episodes: list[dict[str, Any]]) -> dict[str, Any]:
    discrete = {"num_actions": origin.num_actions} if origin.num_actions else {}
    return {
        "env_info": {
            "env_id": origin.env_id,
            "env_kwargs": {
                "obs_mode": "state",
                "control_mode": origin.control_mode,
                "render_mode": None,
                "reward_mode": origin.reward_mode,
                "sim_backend": origin.sim_backend,
                "render_backend": "none",
                "num_envs": 1,
            },
            "max_episode_steps": origin.max_steps,
            **discrete,
        },
        "commit_info": None,
        "episodes": episodes,
        "source_type": origin.kind,
        "source_desc": origin.text,
    }
