"""DQC in float64, one sample and one ensemble member at a time.

Symbols as in the equations: h actions that Q^h scores, h_a that are executed, y the target of Q^h, y_d of Q^ha.
A loss takes its own parameters first; all that must not learn from it comes from `state`.
"""

import math
from typing import Any

import torch
from torch import Tensor

from tests.reference import cpql
from tests.reference.cpql import Params, clamp, condition, critic_outputs, double, gradient, mean, sample, sigmoid

EPS = 1e-5
NETWORKS = ("policy", "chunk_critic", "action_critic", "value")


def numbers(outputs: list[Tensor]) -> list[float]:
    return [float(sigmoid(out)) for out in outputs]


def value(p: Params, s: Tensor) -> Tensor:
    """Logit of V(s): an ensemble of one that is given no action."""
    (out,) = critic_outputs(p, s, s[:0])
    return out


def y(state: Any, batch: Any, b: int, cfg: Any) -> float:
    total, tau = 0.0, 0
    for i in range(len(batch.reward[b])):
        if batch.mask[b, i] == 1:
            total += cfg.gamma**i * float(batch.reward[b, i])
            tau += 1
    target = cfg.reward_scale * total
    if batch.terminal[b] == 0:
        target += cfg.gamma**tau * float(sigmoid(value(state["value"], condition(batch.next_obs, b))))
    return max(0.0, min(1.0, target))


def valid(batch: Any, b: int, h_a: int) -> bool:
    tau = int(sum(batch.mask[b]))
    return tau >= h_a or batch.terminal[b] == 1


def cross_entropy(logit: Tensor, target: float) -> Tensor:
    p = sigmoid(logit)
    return -target * torch.log(p) - (1 - target) * torch.log(1 - p)


def rho(logit: Tensor, target: float, kappa: float, measure: str) -> Tensor:
    weight = kappa if target >= float(sigmoid(logit).detach()) else 1 - kappa
    if measure == "expectile":
        return weight * cross_entropy(logit, target)
    inside = min(max(target, EPS), 1 - EPS)
    distance = logit - (math.log(inside) - math.log(1 - inside))
    return weight * (distance if distance > 0 else -distance)


def agg(values: list[Any], cfg: Any) -> Any:
    return sum(values) / len(values) if cfg.q_agg == "mean" else min(values)


def chunk_critic_loss(p: Params, state: Any, batch: Any, noise: dict[str, Tensor], cfg: Any, spec: Any) -> Tensor:
    terms = []
    for b in range(len(batch.action)):
        target = y(state, batch, b, cfg)
        for logit in critic_outputs(p, condition(batch.obs, b), batch.q_action[b]):
            terms.append(cross_entropy(logit, target))
    return mean(terms)


def action_critic_loss(p: Params, state: Any, batch: Any, noise: dict[str, Tensor], cfg: Any, spec: Any) -> Tensor:
    terms = []
    for b in range(len(batch.action)):
        if valid(batch, b, spec.act_horizon):
            s = condition(batch.obs, b)
            teachers = numbers(critic_outputs(state["chunk_critic"], s, batch.q_action[b]))
            students = critic_outputs(p, s, batch.q_action[b][: spec.act_horizon])
            for y_d, logit in zip(teachers, students, strict=True):
                terms.append(rho(logit, y_d, cfg.kappa_d, cfg.distill))
    return mean(terms)


def value_loss(p: Params, state: Any, batch: Any, noise: dict[str, Tensor], cfg: Any, spec: Any) -> Tensor:
    terms = []
    for b in range(len(batch.action)):
        if valid(batch, b, spec.act_horizon):
            s = condition(batch.obs, b)
            outputs = critic_outputs(state["action_critic_target"], s, batch.q_action[b][: spec.act_horizon])
            terms.append(rho(value(p, s), agg(numbers(outputs), cfg), cfg.kappa_b, cfg.backup))
    return mean(terms)


def policy_loss(p: Params, state: Any, batch: Any, noise: dict[str, Tensor], cfg: Any, spec: Any) -> Tensor:
    return cpql.flow_loss(p, batch, noise, cfg)


LOSSES = {
    "policy": policy_loss,
    "chunk_critic": chunk_critic_loss,
    "action_critic": action_critic_loss,
    "value": value_loss,
}


def act(acting: Any, s: Tensor, z: Tensor, cfg: Any, spec: Any) -> Tensor:
    """The executed part of the best of the predictions from z, [N, H_p, A]."""
    policy, chunks, scores = acting["policy_ema"], [], []
    for n in range(len(z)):
        x_1 = clamp(sample(policy, policy, z[n], s, cfg.num_flow_steps, 0, cfg.network.time_dim), spec)
        chunks.append(x_1[spec.act_offset : spec.act_offset + spec.act_horizon])
        scores.append(float(agg(critic_outputs(acting["action_critic"], s, chunks[-1]), cfg)))
    return chunks[scores.index(max(scores))]


class Reference(cpql.Reference):
    """A training run: parameters, Adam's moments and the number of updates."""

    def __init__(self, state: Any, cfg: Any, spec: Any):
        self.state = {k: double(state[k]) for k in (*NETWORKS, "acting", "action_critic_target")}
        self.cfg, self.spec, self.t = cfg, spec, 0
        self.moments = {name: {k: [0 * v, 0 * v] for k, v in self.state[name].items()} for name in NETWORKS}

    def update(self, batch: Any, noise: dict[str, Tensor]) -> None:
        batch = type(batch)(*(double(field) for field in batch))
        noise, before, cfg = double(noise), self.state, self.cfg
        self.t += 1
        new: dict[str, Any] = {}
        for name, loss in LOSSES.items():
            args = (before, batch, noise, cfg, self.spec)
            grad = gradient(lambda p, loss=loss, args=args: loss(p, *args), before[name])
            lr = cfg.lr if name == "policy" else cfg.lr_critic
            new[name] = self.adam(name, before[name], self.clip(grad), lr)
        target, ema = before["action_critic_target"], before["acting"]["policy_ema"]
        new["action_critic_target"] = {
            k: (1 - cfg.tau) * v + cfg.tau * new["action_critic"][k] for k, v in target.items()
        }
        averaged = {k: cfg.ema_decay * v + (1 - cfg.ema_decay) * new["policy"][k] for k, v in ema.items()}
        self.state = {**new, "acting": {"policy_ema": averaged, "action_critic": new["action_critic"]}}
