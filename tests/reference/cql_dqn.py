"""Discrete CQL on double DQN in float64, one sample and one action at a time.

Symbols as in the equations: Q(s, .) values of all actions, y target, T temperature. Where a gradient must stop, plain
numbers are passed on. `cfg` is read for its numbers only.
"""

from typing import Any

import torch
from torch import Tensor

from tests.reference import cpql
from tests.reference.cpql import Params, condition, double, gradient, mean, relu


def values(p: Params, s: Tensor) -> list[Tensor]:
    """Q(s, a) for a = 0 .. n - 1: linear layers with ReLU between them."""
    layers = sorted({int(name.split(".")[0]) for name in p})
    h = s
    for layer in layers:
        h = p[f"{layer}.weight"] @ h + p[f"{layer}.bias"]
        h = h if layer == layers[-1] else relu(h)
    return list(h)


def best(q: list[Tensor]) -> int:
    """The action of the largest value."""
    return max(range(len(q)), key=lambda a: float(q[a]))


def data_action(batch: Any, b: int) -> int:
    return int(batch.q_action[b, 0, 0])


def next_values(online: Params, target: Params, batch: Any, cfg: Any) -> list[float]:
    """Q'(s', a*) of each sample."""
    found = []
    for b in range(len(batch.action)):
        s = condition(batch.next_obs, b)
        choice = best(values(online if cfg.double_q else target, s))
        found.append(float(values(target, s)[choice]))
    return found


def targets(online: Params, target: Params, batch: Any, cfg: Any) -> list[float]:
    ys = []
    for b, value in enumerate(next_values(online, target, batch, cfg)):
        y, discount = 0.0, 1.0
        for r, inside in zip(batch.reward[b].tolist(), batch.mask[b].tolist(), strict=True):
            if inside:
                y += discount * r
                discount *= cfg.gamma
        ys.append(y + (0.0 if batch.terminal[b] else discount * value))
    return ys


def td_loss(p: Params, ys: list[float], batch: Any) -> Tensor:
    return mean([(values(p, condition(batch.obs, b))[data_action(batch, b)] - y) ** 2 for b, y in enumerate(ys)])


def push_down(p: Params, batch: Any, cfg: Any) -> Tensor:
    rows = [values(p, condition(batch.obs, b)) for b in range(len(batch.action))]
    return mean([cfg.cql_temp * torch.log(sum(torch.exp(q / cfg.cql_temp) for q in row)) for row in rows])


def pull_up(p: Params, batch: Any) -> Tensor:
    rows = range(len(batch.action))
    return -mean([values(p, condition(batch.obs, b))[data_action(batch, b)] for b in rows])


def critic_loss(p: Params, state: Any, batch: Any, cfg: Any) -> Tensor:
    ys = targets(state["critic"], state["critic_target"], batch, cfg)
    return td_loss(p, ys, batch) + cfg.cql_alpha * (push_down(p, batch, cfg) + pull_up(p, batch))


class Reference(cpql.Reference):
    """A training run of the one network."""

    def __init__(self, state: Any, cfg: Any):
        self.state = {k: double(state[k]) for k in ("acting", "critic", "critic_target")}
        self.cfg, self.t = cfg, 0
        self.moments = {"critic": {k: [0 * v, 0 * v] for k, v in self.state["critic"].items()}}

    def update(self, batch: Any, noise: dict[str, Tensor]) -> None:
        batch = type(batch)(*(double(field) for field in batch))
        before, cfg = self.state, self.cfg
        self.t += 1
        grad = gradient(lambda p: critic_loss(p, before, batch, cfg), before["critic"])
        critic = self.adam("critic", before["critic"], self.clip(grad), cfg.lr)
        target = {k: (1 - cfg.tau) * v + cfg.tau * critic[k] for k, v in before["critic_target"].items()}
        self.state = {"acting": {"critic": critic}, "critic": critic, "critic_target": target}
