"""Scripted demonstrations with graded action noise, written in ManiSkill's trajectory layout."""

import json
import math
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch

from offrl_ray.envs.experts import CONTROL_MODE, EXPERTS, Trajectory, demonstrate
from offrl_ray.envs.maniskill import ManiSkillEnv
from offrl_ray.errors import UsageError, did_you_mean

SEED_END = 2**32  # numpy's RandomState, which ManiSkill seeds, takes no more


class Job(NamedTuple):
    env_seed: int
    noise: float
    noise_seed: tuple[int, int]


class NoiseLevel(NamedTuple):
    noise: float
    episodes: int
    successes: int
    steps: int


class CollectSummary(NamedTuple):
    out: Path
    levels: tuple[NoiseLevel, ...]
    seconds: float


def _problems(
    env_id: str, episodes: int, noise: Sequence[float], seed: int, out: Path, workers: int, max_steps: int
) -> Iterator[str]:
    if env_id not in EXPERTS:
        yield f"env_id must have a scripted expert, but got {env_id!r}; {did_you_mean(env_id, EXPERTS)}"
    for name, number in (("episodes", episodes), ("workers", workers), ("max_steps", max_steps)):
        if number < 1:
            yield f"{name} must be at least 1, but got {number}"
    if not noise:
        yield "noise must name at least one level, but got none; 0 gives clean demonstrations"
    if bad := [n for n in noise if not (math.isfinite(n) and n >= 0)]:
        yield f"noise levels must be finite and not negative, but got {', '.join(map(str, bad))}"
    if seed < 0 or seed + episodes > SEED_END:
        yield f"the episodes' seeds must lie in [0, 2**32), but got seed {seed} for {episodes} episodes"
    if out.suffix != ".h5":
        yield f"out must end in .h5, but got {out}"
    if not (out.parent.is_dir() and os.access(out.parent, os.W_OK)):
        yield f"out must lie in an existing folder that can be written to, but got {out}"
    for path in sorted({out, out.with_suffix(".json")}):
        if path.exists():
            yield f"out must be new, but {path} exists; remove it or choose another name"


def _run(env: ManiSkillEnv, job: Job) -> Trajectory:
    return demonstrate(env, job.env_seed, job.noise, np.random.default_rng(job.noise_seed))


_worker_env: ManiSkillEnv


def _die_with_parent() -> None:
    multiprocessing.parent_process().join()  # type: ignore[union-attr]
    os._exit(1)


def _start_worker(env_id: str, max_steps: int) -> None:
    global _worker_env
    threading.Thread(target=_die_with_parent, daemon=True).start()  # a killed parent leaves its pool waiting for ever
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends the pool
    torch.set_num_threads(1)
    _worker_env = ManiSkillEnv(env_id, CONTROL_MODE, max_steps=max_steps)


def _work(job: Job) -> Trajectory:
    return _run(_worker_env, job)


def _trajectories(env_id: str, max_steps: int, jobs: Sequence[Job], workers: int) -> Generator[Trajectory, None, None]:
    """In the order of the jobs."""
    if workers == 1:
        env = ManiSkillEnv(env_id, CONTROL_MODE, max_steps=max_steps)
        try:
            for job in jobs:
                yield _run(env, job)
        finally:
            env.close()
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(jobs)), context, _start_worker, (env_id, max_steps))
    try:
        yield from pool.map(_work, jobs)
    finally:
        pool.shutdown(cancel_futures=True)


def _write_trajectory(group: h5py.Group, trajectory: Trajectory) -> None:
    for name, array in trajectory._asdict().items():
        if name != "env_states":
            group[name] = array
    for kind, bodies in trajectory.env_states.items():
        for name, array in bodies.items():
            group[f"env_states/{kind}/{name}"] = array


def _metadata(env_id: str, max_steps: int, jobs: Sequence[Job], results: Sequence[tuple[int, bool]]) -> dict[str, Any]:
    return {
        "env_info": {
            "env_id": env_id,
            "env_kwargs": {
                "obs_mode": "state",
                "control_mode": CONTROL_MODE,
                "render_mode": None,
                "reward_mode": "sparse",
                "sim_backend": "physx_cpu",
                "render_backend": "none",
                "num_envs": 1,
            },
            "max_episode_steps": max_steps,
        },
        "commit_info": None,
        "episodes": [
            {
                "episode_id": i,
                "episode_seed": job.env_seed,
                "control_mode": CONTROL_MODE,
                "elapsed_steps": steps,
                "reset_kwargs": {"options": None, "seed": job.env_seed},
                "success": success,
                "noise": job.noise,
            }
            for i, (job, (steps, success)) in enumerate(zip(jobs, results, strict=True))
        ],
        "source_type": "scripted",
        "source_desc": "proportional controller on the simulator's state, with Gaussian action noise",
    }


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _progress_line(results: Sequence[tuple[int, bool]], total: int, seconds: float) -> str:
    """`seconds` since the first result, so that starting the simulators does not count."""
    done, successes = len(results), sum(ok for _, ok in results)
    speed = sum(steps for steps, _ in results[1:]) / max(seconds, 1e-9)
    eta = seconds / max(1, done - 1) * (total - done)
    return f"{done}/{total} episodes, success {successes / done:.0%}, {speed:.0f} steps/s, ETA {eta:.0f} s"


def _levels(jobs: Sequence[Job], results: Sequence[tuple[int, bool]]) -> tuple[NoiseLevel, ...]:
    levels: dict[float, NoiseLevel] = {}
    for job, (steps, success) in zip(jobs, results, strict=True):
        old = levels.get(job.noise, NoiseLevel(job.noise, 0, 0, 0))
        levels[job.noise] = NoiseLevel(job.noise, old.episodes + 1, old.successes + success, old.steps + steps)
    return tuple(levels.values())


def collect(
    env_id: str,
    episodes: int,
    noise: Sequence[float],
    seed: int,
    out: Path,
    workers: int = 1,
    max_steps: int = 100,
    progress: Callable[[str], None] | None = None,
) -> CollectSummary:
    """Write `episodes` episodes to `out` (.h5) and its .json; failed ones are kept and marked.

    Episode i runs from environment seed `seed + i` with noise level `noise[i % len(noise)]`, the standard deviation
    of the noise added to actions in [-1, 1]. The files do not depend on `workers`, and appear complete or not at all.
    `progress` receives a line about once a second. Raises UsageError before anything is started or written.
    """
    if problems := list(_problems(env_id, episodes, noise, seed, out, workers, max_steps)):
        raise UsageError(problems)
    jobs = [Job(seed + i, float(noise[i % len(noise)]), (seed, i)) for i in range(episodes)]
    results: list[tuple[int, bool]] = []
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f".{out.stem}.", dir=out.parent) as folder:
        new_h5, new_json = Path(folder, "h5"), Path(folder, "json")
        with (
            closing(_trajectories(env_id, max_steps, jobs, workers)) as trajectories,
            h5py.File(new_h5, "w") as file,
        ):
            for i, trajectory in enumerate(trajectories):
                _write_trajectory(file.create_group(f"traj_{i}"), trajectory)
                results.append((len(trajectory.actions), bool(trajectory.success[-1])))
                now = time.monotonic()
                if i == 0:
                    first = shown = now
                if progress and (now - shown >= 1 or i + 1 == episodes):
                    progress(_progress_line(results, episodes, now - first))
                    shown = now
        new_json.write_text(json.dumps(_metadata(env_id, max_steps, jobs, results), indent=1) + "\n")
        _fsync(new_h5)
        _fsync(new_json)
        new_json.rename(out.with_suffix(".json"))
        new_h5.rename(out)  # last, so that no h5 is ever without its json
        _fsync(out.parent)
    return CollectSummary(out, _levels(jobs, results), time.monotonic() - start)
