"""SAC with its four actor losses in float64, one sample, one critic and one action dimension at a time.

Symbols as in the equations. Where a gradient must stop, the function takes the stopped number, or the stopped
parameters, as an argument of its own. `cfg` and `spec` are read for their numbers only.
"""

import math
from typing import Any

import torch
from torch import Tensor

from tests.reference.cpql import Params, condition, double, gradient, layer_norm, mean, mish, relu, td_target

__all__ = ["Params", "double", "gradient"]

ACTIVATIONS = {"mish": mish, "relu": relu, "tanh": torch.tanh}
EDGE = 1 - 17 / 2**24


def dense(p: Params, x: Tensor, cfg: Any) -> Tensor:
    """The network of the policy and of V."""
    layer = 0
    while f"layers.{layer}.weight" in p:
        x = p[f"layers.{layer}.weight"] @ x + p[f"layers.{layer}.bias"]
        if cfg.layer_norm:
            x = layer_norm(x, p[f"norms.{layer}.weight"], p[f"norms.{layer}.bias"])
        x = ACTIVATIONS[cfg.activation](x)
        layer += 1
    return p["out.weight"] @ x + p["out.bias"]


def value(p: Params, s: Tensor, cfg: Any) -> Tensor:
    return dense(p, s, cfg)[0]


def critics(p: Params, s: Tensor, chunk: Tensor, cfg: Any) -> list[Tensor]:
    """Q_e(s, a), e = 1 .. E."""
    values = []
    for e in range(cfg.num_critics):
        x = torch.cat([s, chunk.flatten()])
        layer = 0
        while f"w.{layer}" in p:
            x = x @ p[f"w.{layer}"][e] + p[f"b.{layer}"][e, 0]
            if cfg.layer_norm:
                x = layer_norm(x, p[f"norm_w.{layer}"][e, 0], p[f"norm_b.{layer}"][e, 0])
            x = ACTIVATIONS[cfg.activation](x)
            layer += 1
        values.append((x @ p["w_out"][e])[0] + p["b_out"][e, 0, 0])
    return values


def smallest(values: list[Tensor]) -> Tensor:
    best = values[0]
    for v in values[1:]:
        best = v if v < best else best
    return best


def normal(p: Params, s: Tensor, cfg: Any, spec: Any) -> list[tuple[Tensor, Tensor]]:
    """(mean, log std) of each of the chunk's H_p * A dimensions, step by step."""
    out = dense(p, s, cfg)
    d = spec.pred_horizon * spec.action_dim
    return [(out[i], out[d + i].clamp(-20, 2)) for i in range(d)]


def log_normal(u: Tensor, mu: Tensor, log_std: Tensor) -> Tensor:
    return -(((u - mu) / torch.exp(log_std)) ** 2) / 2 - log_std - math.log(2 * math.pi) / 2


def sample(p: Params, s: Tensor, eps: Tensor, cfg: Any, spec: Any) -> tuple[Tensor, Tensor]:
    """A normalised chunk [H_p, A] and log pi of its raw form: log N(u) - log |d tanh(u) / du|."""
    actions, log_pi = [], torch.zeros((), dtype=torch.float64)
    for i, (mu, log_std) in enumerate(normal(p, s, cfg, spec)):
        u = mu + torch.exp(log_std) * eps.flatten()[i]
        raw, dim = torch.tanh(u), i % spec.action_dim
        log_pi = log_pi + log_normal(u, mu, log_std) - torch.log(1 - raw**2)
        actions.append((raw - spec.action_mean[dim]) / spec.action_std[dim])
    return torch.stack(actions).reshape(eps.shape), log_pi


def log_prob(p: Params, s: Tensor, action: Tensor, cfg: Any, spec: Any) -> Tensor:
    log_pi = torch.zeros((), dtype=torch.float64)
    for i, (mu, log_std) in enumerate(normal(p, s, cfg, spec)):
        dim = i % spec.action_dim
        raw = float(action.flatten()[i]) * spec.action_std[dim] + spec.action_mean[dim]
        raw = max(-EDGE, min(EDGE, raw))
        u = math.log((1 + raw) / (1 - raw)) / 2
        log_pi = log_pi + log_normal(torch.tensor(u, dtype=torch.float64), mu, log_std) - math.log(1 - raw**2)
    return log_pi


def uniform_chunk(share: Tensor, spec: Any) -> Tensor:
    raw = 2 * share - 1
    return torch.stack([(raw[:, d] - spec.action_mean[d]) / spec.action_std[d] for d in range(spec.action_dim)], dim=1)


def temperature(state: Any, cfg: Any) -> float:
    return cfg.init_temperature * math.exp(float(state["temperature"]["log_factor"]))


def target_entropy(cfg: Any, spec: Any) -> float:
    d = spec.pred_horizon * spec.action_dim
    return -d / 2 if cfg.target_entropy is None else cfg.target_entropy


def targets(state: Any, batch: Any, noise: Any, cfg: Any, spec: Any) -> list[float]:
    """y with V'(s') for iql, else the minimum over the critics of smallest `subset`."""
    ys = []
    for b in range(len(batch.action)):
        s = condition(batch.next_obs, b)
        if cfg.actor_loss == "iql":
            v = float(value(state["value_target"], s, cfg))
        else:
            a, log_pi = sample(state["policy"], s, noise["eps_next"][b], cfg, spec)
            q = critics(state["critic_target"], s, a[: spec.q_horizon], cfg)
            chosen = sorted(range(cfg.num_critics), key=lambda e: float(noise["subset"][e]))[: cfg.num_min]
            v = min(float(q[e]) for e in chosen)
            if cfg.backup_entropy:
                v -= temperature(state, cfg) * float(log_pi)
        ys.append(td_target(batch.reward[b], batch.mask[b], float(batch.terminal[b]), v, cfg))
    return ys


def td_loss(p: Params, ys: list[float], batch: Any, cfg: Any) -> Tensor:
    """Half the sum over the ensemble of the batch's mean."""
    rows = [critics(p, condition(batch.obs, b), batch.q_action[b], cfg) for b in range(len(ys))]
    return sum(mean([(row[e] - y) ** 2 for row, y in zip(rows, ys, strict=True)]) for e in range(cfg.num_critics)) / 2


def penalty(p: Params, policy: Params, batch: Any, noise: Any, cfg: Any, spec: Any) -> Tensor:
    terms = []
    for b in range(len(batch.action)):
        s = condition(batch.obs, b)
        with torch.no_grad():
            chunk, _ = sample(policy, s, noise["eps_penalty"][b], cfg, spec)
        q_pi = critics(p, s, chunk[: spec.q_horizon], cfg)
        q_u = critics(p, s, uniform_chunk(noise["random_action"][b], spec), cfg)
        q_data = critics(p, s, batch.q_action[b], cfg)
        terms += [torch.log(torch.exp(x) + torch.exp(y)) - z for x, y, z in zip(q_pi, q_u, q_data, strict=True)]
    return mean(terms)


def critic_loss(p: Params, ys: list[float], policy: Params, batch: Any, noise: Any, cfg: Any, spec: Any) -> Tensor:
    return td_loss(p, ys, batch, cfg) + cfg.cql_alpha * penalty(p, policy, batch, noise, cfg, spec)


def data_q(critic: Params, batch: Any, cfg: Any) -> list[list[float]]:
    return [
        [float(q) for q in critics(critic, condition(batch.obs, b), batch.q_action[b], cfg)]
        for b in range(len(batch.action))
    ]


def value_loss(p: Params, critic_target: Params, batch: Any, cfg: Any) -> Tensor:
    kappa = cfg.expectile if cfg.actor_loss == "iql" else 0.5
    terms = []
    for b, q in enumerate(data_q(critic_target, batch, cfg)):
        u = min(q) - value(p, condition(batch.obs, b), cfg)
        terms.append(abs(kappa - (1.0 if u < 0 else 0.0)) * u**2)
    return mean(terms)


def advantages(v: Params | None, critic_target: Params, critic: Params, batch: Any, cfg: Any) -> list[float]:
    """`critic` are the trained critics after their step, `critic_target` the averaged ones before theirs."""
    rows = data_q(critic_target if cfg.actor_loss == "iql" else critic, batch, cfg)
    if cfg.actor_loss == "awr" and cfg.awr_advantage == "ensemble_gap":
        return [min(row) - mean(row) for row in rows]
    return [min(row) - float(value(v, condition(batch.obs, b), cfg)) for b, row in enumerate(rows)]


def weights(advantage: list[float], cfg: Any) -> list[float]:
    if cfg.actor_loss == "iql":
        w = [math.exp(max(-cfg.iql_clip, min(cfg.iql_clip, a / cfg.iql_temperature))) for a in advantage]
        return [x / mean(w) for x in w]
    centre = mean(advantage)
    deviation = math.sqrt(mean([(a - centre) ** 2 for a in advantage]))
    z = [(a - centre) / max(deviation, 1e-6) for a in advantage]
    return [min(math.exp(x / cfg.awr_temperature), cfg.weight_clip) for x in z]


def log_pis(p: Params, batch: Any, noise: Any, cfg: Any, spec: Any) -> list[Tensor]:
    return [sample(p, condition(batch.obs, b), noise["eps"][b], cfg, spec)[1] for b in range(len(batch.action))]


def policy_qs(p: Params, critic: Params, batch: Any, noise: Any, cfg: Any, spec: Any) -> list[Tensor]:
    qs = []
    for b in range(len(batch.action)):
        s = condition(batch.obs, b)
        chunk, _ = sample(p, s, noise["eps"][b], cfg, spec)
        row = critics(critic, s, chunk[: spec.q_horizon], cfg)
        qs.append(smallest(row) if cfg.actor_q_mode == "min" else mean(row))
    return qs


def squared_error(p: Params, batch: Any, noise: Any, cfg: Any, spec: Any) -> Tensor:
    terms = []
    for b in range(len(batch.action)):
        chunk, _ = sample(p, condition(batch.obs, b), noise["eps"][b], cfg, spec)
        for h in range(spec.pred_horizon):
            terms += [(chunk[h, d] - batch.action[b, h, d]) ** 2 for d in range(spec.action_dim)]
    return mean(terms)


def lam(frozen: Params, critic: Params, temperature: float, batch: Any, noise: Any, cfg: Any, spec: Any) -> float:
    if cfg.actor_loss == "td3bc" and cfg.lam_mode == "adaptive":
        size = mean([abs(float(q)) for q in policy_qs(frozen, critic, batch, noise, cfg, spec)])
        return temperature / (temperature + size)
    return {"sac": 1.0, "td3bc": 1 / (1 + cfg.bc_weight)}.get(cfg.actor_loss, 0.0)


def actor_loss(
    p: Params, frozen: Params, critic: Params, w: list[float], temperature: float, batch: Any, noise: Any, *about: Any
) -> Tensor:
    """L_actor; `critic` after its step, `w` the weights of the data for awr and iql."""
    cfg, spec = about
    entropic = temperature * mean(log_pis(p, batch, noise, cfg, spec))
    if cfg.actor_loss in ("awr", "iql"):
        likelihood = [
            w[b] * log_prob(p, condition(batch.obs, b), batch.action[b], cfg, spec) for b in range(len(batch.action))
        ]
        plain = -mean(likelihood)
        return plain + entropic if cfg.actor_loss == "awr" or cfg.entropy_bonus else plain
    q = mean(policy_qs(p, critic, batch, noise, cfg, spec))
    if cfg.actor_loss == "sac" or (cfg.lam_mode == "const" and cfg.bc_weight == 0):
        return entropic - q
    size = mean([abs(float(x)) for x in policy_qs(frozen, critic, batch, noise, cfg, spec)])
    share = lam(frozen, critic, temperature, batch, noise, cfg, spec)
    bc = squared_error(p, batch, noise, cfg, spec)
    return entropic - share * q / max(size, cfg.q_norm_eps) + (1 - share) * bc


def temperature_loss(log_factor: Tensor, mean_log_pi: float, cfg: Any, spec: Any) -> Tensor:
    return -(math.log(cfg.init_temperature) + log_factor) * (mean_log_pi + target_entropy(cfg, spec))


class Reference:
    """A training run: parameters, Adam's moments and the number of updates."""

    def __init__(self, state: Any, cfg: Any, spec: Any):
        self.state = {k: double(v) for k, v in state.items() if not k.endswith("_opt")}
        self.cfg, self.spec, self.t = cfg, spec, 0
        trained = [k.removesuffix("_opt") for k in state if k.endswith("_opt")]
        self.moments = {name: {k: [0 * v, 0 * v] for k, v in self.state[name].items()} for name in trained}

    def update(self, batch: Any, noise: Any) -> None:
        batch, noise = type(batch)(*(double(field) for field in batch)), double(noise)
        cfg, spec, s = self.cfg, self.spec, self.state
        self.t += 1
        old_targets = s["critic_target"]
        if "value" in s:
            self.step("value", lambda p: value_loss(p, old_targets, batch, cfg), cfg.lr_critic)
        ys = targets(s, batch, noise, cfg, spec)
        self.step("critic", lambda p: critic_loss(p, ys, s["policy"], batch, noise, cfg, spec), cfg.lr_critic)
        w: list[float] = []
        if cfg.actor_loss in ("awr", "iql"):
            w = weights(advantages(s.get("value"), old_targets, s["critic"], batch, cfg), cfg)
        before, warmth = s["policy"], temperature(s, cfg)
        log_pi = mean([float(x) for x in log_pis(before, batch, noise, cfg, spec)])
        about = (before, s["critic"], w, warmth, batch, noise, cfg, spec)
        self.step("policy", lambda p: actor_loss(p, *about), cfg.lr)
        self.step(
            "temperature",
            lambda p: temperature_loss(p["log_factor"], log_pi, cfg, spec),
            cfg.lr_temperature,
            clip=False,
        )
        s["acting"] = {"policy": s["policy"]}
        for name in ("critic", "value"):
            if f"{name}_target" in s:
                target, online = s[f"{name}_target"], s[name]
                s[f"{name}_target"] = {k: (1 - cfg.tau) * v + cfg.tau * online[k] for k, v in target.items()}

    def step(self, name: str, loss: Any, lr: float, clip: bool = True) -> None:
        grad = gradient(loss, self.state[name])
        norm = float(sum((g**2).sum() for g in grad.values())) ** 0.5
        scale = min(1.0, self.cfg.grad_clip / norm) if clip and self.cfg.grad_clip is not None else 1.0
        stepped = {}
        for k, g in grad.items():
            m, v = self.moments[name][k]
            m, v = 0.9 * m + 0.1 * scale * g, 0.999 * v + 0.001 * (scale * g) ** 2
            self.moments[name][k] = [m, v]
            step = lr * (m / (1 - 0.9**self.t)) / (torch.sqrt(v / (1 - 0.999**self.t)) + 1e-8)
            stepped[k] = self.state[name][k] - step
        self.state[name] = stepped
