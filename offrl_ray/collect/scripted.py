"""Scripted demonstrations in ManiSkill with graded action noise."""

import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import numpy as np
import torch

from offrl_ray.collect.files import Label, Maker, Origin
from offrl_ray.envs.experts import CONTROL_MODE, Trajectory, demonstrate
from offrl_ray.envs.maniskill import ManiSkillEnv


class Job(NamedTuple):
    env_seed: int
    noise: float
    noise_seed: tuple[int, int]


def _problems(noise: Sequence[float], workers: int | None) -> Iterator[str]:
    if bad := [n for n in noise if not (math.isfinite(n) and n >= 0)]:
        yield f"noise levels must be finite and not negative, but got {', '.join(map(str, bad))}"
    if workers is not None and workers < 1:
        yield f"workers must be at least 1, but got {workers}"


def _origin(env_id: str, max_steps: int) -> Origin:
    text = "proportional controller on the simulator's state, with Gaussian action noise"
    return Origin(env_id, max_steps, CONTROL_MODE, "sparse", "physx_cpu", 0, "scripted", text)


def _labels(episodes: int, noise: Sequence[float], seed: int) -> list[Label]:
    """Episode i has noise level `noise[i % len(noise)]`; none given is none added."""
    levels = noise or (0.0,)
    return [Label(seed + i, {"noise": float(levels[i % len(levels)])}) for i in range(episodes)]


def _trajectories(
    origin: Origin, labels: Sequence[Label], seed: int, workers: int | None
) -> Generator[Trajectory, None, None]:
    """In the order of the labels."""
    jobs = [Job(label.seed, label.facts["noise"], (seed, i)) for i, label in enumerate(labels)]
    if not workers or workers == 1:
        env = _open(origin.env_id, origin.max_steps)
        try:
            for job in jobs:
                yield _run(env, job)
        finally:
            env.close()
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(jobs)), context, _start_worker, (origin.env_id, origin.max_steps))
    try:
        yield from pool.map(_work, jobs)
    finally:
        pool.shutdown(cancel_futures=True)


def _open(env_id: str, max_steps: int) -> ManiSkillEnv:
    return ManiSkillEnv(env_id, CONTROL_MODE, max_steps=max_steps)


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
    _worker_env = _open(env_id, max_steps)


def _work(job: Job) -> Trajectory:
    return _run(_worker_env, job)


MAKER = Maker(100, _problems, _origin, _labels, _trajectories)
