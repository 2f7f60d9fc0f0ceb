"""AWCP in float64, one sample at a time; networks, flow matching and critic are the reference's of CPQL.

Symbols as in the equations: q minimum of the critics at the data's chunk, A advantage, w weight, W clip, u = q - V(s).
Weights are numbers, not tensors: no gradient can pass through them. `cfg` and `spec` are read for their numbers only.
"""

import math
from typing import Any

import torch
from torch import Tensor

from tests.reference import cpql
from tests.reference.cpql import Params, condition, critics, euler, mean, squares


def data_q(critic: Params, batch: Any, cfg: Any, spec: Any) -> list[float]:
    rows = [critics(critic, condition(batch.obs, b), batch.q_action[b], cfg, spec) for b in range(len(batch.action))]
    return [min(float(q) for q in row) for row in rows]


def state_values(value: Params, batch: Any) -> list[Tensor]:
    """V(s) has the critic's network, without an action and with one member."""
    no_action = torch.zeros(0, dtype=torch.float64)
    return [cpql.critic_outputs(value, condition(batch.obs, b), no_action)[0] for b in range(len(batch.action))]


def advantages(state: Any, batch: Any, cfg: Any, spec: Any) -> list[float]:
    q = data_q(state["critic"], batch, cfg, spec)
    if cfg.baseline == "batch_mean":
        return [value - sum(q) / len(q) for value in q]
    return [value - float(v) for value, v in zip(q, state_values(state["value"], batch), strict=True)]


def weights(advantage: list[float], beta: float, clip: float) -> list[float]:
    raw = [min(math.exp(beta * a), clip) for a in advantage]
    return [w * len(raw) / sum(raw) for w in raw]


def endpoint_errors(p: Params, teacher: Params, batch: Any, noise: dict[str, Tensor], cfg: Any) -> list[Tensor]:
    terms = []
    for b in range(len(batch.action)):
        x_0, x_1, s = noise["x_0"][b], batch.action[b], condition(batch.obs, b)
        t_c = float(noise["t_c"][b])
        t_plus = min(t_c + cfg.cons_step, 1.0)
        ends = []
        for params, t in ((p, t_plus), (teacher, t_c)):
            x_t = (1 - t) * x_0 + t * x_1
            ends.append(euler(params, x_t, t, 1.0, s, cfg.teacher_steps, cfg.network.time_dim))
        terms.append(squares(*ends))
    return terms


def flow_loss(p: Params, w: list[float], batch: Any, noise: dict[str, Tensor], cfg: Any) -> Tensor:
    errors = cpql.flow_errors(p, batch, noise, cfg)
    return mean([w_i * l_i for w_i, l_i in zip(w, errors, strict=True)])


def consistency_loss(
    p: Params, teacher: Params, w: list[float], batch: Any, noise: dict[str, Tensor], cfg: Any
) -> Tensor:
    form = endpoint_errors if cfg.cons_mode == "endpoint" else cpql.consistency_errors
    errors = form(p, teacher, batch, noise, cfg)
    return mean([w_i * l_i for w_i, l_i in zip(w, errors, strict=True)])


def policy_loss(p: Params, state: Any, batch: Any, noise: dict[str, Tensor], cfg: Any, spec: Any) -> Tensor:
    w = weights(advantages(state, batch, cfg, spec), cfg.beta, cfg.weight_clip)
    teacher = state["acting"]["policy_ema"]
    imitation = cfg.bc_weight * flow_loss(p, w, batch, noise, cfg)
    return imitation + cfg.consistency_weight * consistency_loss(p, teacher, w, batch, noise, cfg)


def value_loss(p: Params, state: Any, batch: Any, noise: dict[str, Tensor], cfg: Any, spec: Any) -> Tensor:
    terms = []
    for q, v in zip(data_q(state["critic"], batch, cfg, spec), state_values(p, batch), strict=True):
        u = q - v
        terms.append(abs(cfg.expectile - (1 if u < 0 else 0)) * u**2)
    return mean(terms)


class Reference(cpql.Reference):
    def losses(self) -> dict[str, Any]:
        value = {"value": value_loss} if "value" in self.state else {}
        return {"policy": policy_loss, "critic": cpql.critic_loss, **value}
