"""The training loop: the only one, for one member or several."""

import time
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from offrl_ray.algos.functional import select, stack, to_device
from offrl_ray.config import RunConfig
from offrl_ray.fields import hparams
from offrl_ray.types import Algorithm, Metrics, Source, State


class Snapshot(NamedTuple):
    """All that a run needs to go on as if it had never stopped; leading axis P, one entry per seed."""

    step: int
    state: State
    generators: Tensor  # [P, bytes] uint8
    source: State = {}  # noqa: RUF012, what the run gathered itself (Source.pack)


class Progress(NamedTuple):
    snapshot: Snapshot
    metrics: Metrics  # name -> [P], mean over the updates since the last report
    seconds: float  # that these updates took


def keep_memory() -> None:
    """Make glibc keep an update's memory for the next one.

    It takes the largest block that was ever freed for a measure of what to keep, and returns larger ones to the system,
    which hands out zeroed pages again at every update.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


def start(cfg: RunConfig, alg: Algorithm) -> Snapshot:
    """Step 0: every member's parameters and random stream follow from its own seed."""
    generators = [Generator(cfg.train.device).manual_seed(s) for s in cfg.train.seeds]
    state = stack([alg.init(g) for g in generators])
    return Snapshot(0, state, torch.stack([g.get_state() for g in generators]))


def train(cfg: RunConfig, alg: Algorithm, source: Source, resume: Snapshot) -> Iterator[Progress]:
    """Train from `resume` to `cfg.train.steps`, pausing at every report, at every evaluation and at the end.

    A member draws batches and noise from its own generator, so it is the same run alone or beside others: bit for bit
    at an equal number of members on a CPU, else up to rounding (1e-5 after 20 updates of the MLPs; a U-Net with small
    normalisation groups amplifies it).
    """
    torch.set_num_threads(cfg.train.threads)
    keep_memory()
    members = len(cfg.train.seeds)
    generators = [Generator(cfg.train.device) for _ in range(members)]
    for g, saved in zip(generators, resume.generators, strict=True):
        g.set_state(saved.cpu().clone())  # torch 2.13 crashes on a view that does not start its storage
    hp = hparams(cfg.algo, cfg.train.device)
    single = members == 1
    # a lone member is not sent through vmap, which costs it time
    update = alg.update if single else torch.vmap(alg.update, in_dims=(0, 0, 0, None))
    begin = to_device(resume.state, cfg.train.device)
    state = select(begin, 0) if single else begin
    source.unpack(resume.source)
    size, step = cfg.train.batch_size * alg.minibatches, resume.step
    while step < cfg.train.steps:
        began, total, updates = time.perf_counter(), torch.zeros(()), _pause(cfg, step) - step
        for _ in range(updates):
            acting = {"acting": state["acting"]}
            batch = source.sample(generators, size, select(acting, None) if single else acting)
            noise = [alg.update_noise(g, size) for g in generators]
            if single:
                state, metrics = update(state, select(batch, 0), noise[0], hp)
            else:
                state, metrics = update(state, batch, stack(noise), hp)
            total = total + torch.stack([m.expand(members) for m in metrics.values()])
        means = dict(zip(metrics, total.cpu() / updates, strict=True))
        saved = torch.stack([g.get_state() for g in generators])
        step += updates
        snapshot = Snapshot(step, stack([state]) if single else state, saved, source.pack())
        yield Progress(snapshot, means | source.metrics(), time.perf_counter() - began)


def _pause(cfg: RunConfig, step: int) -> int:
    """The first step after `step` at which there is something to tell."""
    periods = (cfg.train.report_every, cfg.eval.every)
    return min(cfg.train.steps, *((step // p + 1) * p for p in periods))
