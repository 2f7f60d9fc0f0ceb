"""CQL in float64, one critic, one state and one action at a time.

Symbols as in the equations: s condition vector, a raw action in [-1, 1] (`normalised` is what networks see), u its
arctanh, Q_e critics, y target, Delta_e the conservative gap. `cfg` and `spec` are read for their numbers only.
"""

import math
from typing import Any

import torch
from torch import Tensor

from tests.reference.cpql import Params, condition, double, gradient, layer_norm, mean, mish, relu, td_target

EDGE = 1 - 17 / 2**24
"""1 - 1e-6 as float32 has it."""
Noise = dict[str, Tensor]


def activated(h: Tensor, cfg: Any) -> Tensor:
    return {"relu": relu, "mish": mish, "tanh": torch.tanh}[cfg.activation](h)


def policy(p: Params, s: Tensor, cfg: Any, spec: Any) -> tuple[Tensor, Tensor]:
    """Mean and log standard deviation of u, [H_p, A] each."""
    h, layer = s, 0
    while f"layers.{layer}.weight" in p:
        h = p[f"layers.{layer}.weight"] @ h + p[f"layers.{layer}.bias"]
        if cfg.layer_norm:
            h = layer_norm(h, p[f"norms.{layer}.weight"], p[f"norms.{layer}.bias"])
        h, layer = activated(h, cfg), layer + 1
    out = p["out.weight"] @ h + p["out.bias"]
    half = len(out) // 2
    shape = (spec.pred_horizon, spec.action_dim)
    return out[:half].reshape(shape), out[half:].clamp(-20, 2).reshape(shape)


def critics(p: Params, s: Tensor, chunk: Tensor, cfg: Any) -> list[Tensor]:
    """Q_e(s, a), e = 1 .. E, of a normalised chunk [H_q, A]."""
    values = []
    for e in range(len(p["w_out"])):
        h, layer = torch.cat([s, chunk.flatten()]), 0
        while f"w.{layer}" in p:
            h = h @ p[f"w.{layer}"][e] + p[f"b.{layer}"][e, 0]
            if cfg.layer_norm:
                h = layer_norm(h, p[f"norm_w.{layer}"][e, 0], p[f"norm_b.{layer}"][e, 0])
            h, layer = activated(h, cfg), layer + 1
        values.append((h @ p["w_out"][e] + p["b_out"][e, 0])[0])
    return values


def normalised(raw: Tensor, spec: Any) -> Tensor:
    mean_, std = (torch.tensor(x, dtype=torch.float64) for x in (spec.action_mean, spec.action_std))
    return (raw - mean_) / std


def log_density(u: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """log of N(u; mean, std) / |d tanh(u) / du|, one number for one dimension."""
    z = (u - mean) / torch.exp(log_std)
    return -(z**2) / 2 - log_std - math.log(2 * math.pi) / 2 - torch.log(1 - torch.tanh(u) ** 2)


def draw(p: Params, s: Tensor, eps: Tensor, steps: int, cfg: Any, spec: Any) -> tuple[Tensor, Tensor]:
    """The normalised chunk of the first `steps` steps that eps gives, and the log density of those."""
    means, log_stds = policy(p, s, cfg, spec)
    rows, density = [], torch.zeros((), dtype=torch.float64)
    for h in range(steps):
        row = []
        for d in range(spec.action_dim):
            u = means[h, d] + torch.exp(log_stds[h, d]) * eps[h, d]
            row.append(torch.tanh(u))
            density = density + log_density(u, means[h, d], log_stds[h, d])
        rows.append(torch.stack(row))
    return normalised(torch.stack(rows), spec), density


def log_prob(p: Params, s: Tensor, action: Tensor, cfg: Any, spec: Any) -> Tensor:
    """log pi(a|s) of a normalised chunk [H_p, A]."""
    means, log_stds = policy(p, s, cfg, spec)
    density = torch.zeros((), dtype=torch.float64)
    for h in range(spec.pred_horizon):
        for d in range(spec.action_dim):
            raw = float(action[h, d]) * spec.action_std[d] + spec.action_mean[d]
            inside = max(-EDGE, min(EDGE, raw))
            u = torch.tensor(0.5 * math.log((1 + inside) / (1 - inside)), dtype=torch.float64)
            density = density + log_density(u, means[h, d], log_stds[h, d])
    return density


def temperature(state: Any, cfg: Any) -> float:
    return cfg.init_temperature * math.exp(float(state["temperature"]["log_factor"]))


def alpha_prime(state: Any, cfg: Any) -> float:
    return 1.0 if cfg.lagrange_gap is None else min(1e6, math.exp(float(state["alpha_prime"]["log"])))


def targets(state: Any, batch: Any, noise: Noise, cfg: Any, spec: Any) -> list[float]:
    """y = clip(rs R^(tau) + (1 - d) gamma^tau V(s'), -C, C)."""
    subset = sorted(range(cfg.num_critics), key=lambda e: float(noise["subset"][e]))[: cfg.num_min]
    ys = []
    for b in range(len(batch.action)):
        s, best = condition(batch.next_obs, b), -math.inf
        draws = [noise["next"][i, b] for i in range(cfg.num_samples)]
        for eps in draws if cfg.max_target_backup else [noise["eps_next"][b]]:
            action, log_pi = draw(state["policy"], s, eps, spec.pred_horizon, cfg, spec)
            q = critics(state["critic_target"], s, action[: spec.q_horizon], cfg)
            smallest = min(float(q[e]) for e in subset)
            if smallest > best:
                best, log_pi_best = smallest, float(log_pi)
        value = best - temperature(state, cfg) * log_pi_best if cfg.backup_entropy else best
        ys.append(td_target(batch.reward[b], batch.mask[b], float(batch.terminal[b]), value, cfg))
    return ys


def td_loss(p: Params, ys: list[float], batch: Any, cfg: Any) -> Tensor:
    """Half the squared errors, summed over the critics and meaned over the batch."""
    terms = []
    for b, y in enumerate(ys):
        terms += [(q - y) ** 2 for q in critics(p, condition(batch.obs, b), batch.q_action[b], cfg)]
    return sum(terms) / len(ys) / 2


Proposal = tuple[str, Tensor, float]
"""source, normalised chunk [H_q, A], log of the density that drew it"""


def proposals(state: Any, batch: Any, b: int, noise: Noise, cfg: Any, spec: Any) -> list[Proposal]:
    found: list[Proposal] = []
    for i in range(cfg.num_samples):
        raw = -1 + 2 * noise["random"][i, b]
        found.append(("random", normalised(raw, spec), spec.q_horizon * spec.action_dim * math.log(0.5)))
        for source, obs in (("current", batch.obs), ("next", batch.next_obs)):
            chunk, density = draw(state["policy"], condition(obs, b), noise[source][i, b], spec.q_horizon, cfg, spec)
            found.append((source, chunk, float(density)))
    return found


def form_of(cfg: Any, spec: Any) -> str:
    if cfg.form != "auto":
        return cfg.form
    return "importance" if spec.q_horizon * spec.action_dim <= 8 else "plain"


def soft_maximum(q: list[tuple[str, Tensor, float]], q_data: Tensor, form: str, temp: float) -> Tensor:
    """T log sum exp(term / T) of (source, Q, log density)."""

    def log_sum(terms: list[Tensor]) -> Tensor:
        top = max(float(t.detach()) for t in terms) / temp
        return temp * (torch.log(sum(torch.exp(t / temp - top) for t in terms)) + top)

    if form == "importance":
        return log_sum([value - density for _, value, density in q])
    if form == "plain":
        return log_sum([value for _, value, _ in q] + [q_data])
    return mean([log_sum([value for s, value, _ in q if s == source]) for source in ("random", "current", "next")])


def deltas(p: Params, state: Any, batch: Any, noise: Noise, cfg: Any, spec: Any) -> list[list[Tensor]]:
    """Delta_e(s) before its clamp, as (push down, pull up); one row a critic."""
    rows: list[list[Any]] = [[] for _ in range(cfg.num_critics)]
    for b in range(len(batch.action)):
        s = condition(batch.obs, b)
        data = critics(p, s, batch.q_action[b], cfg)
        valued = [
            (name, critics(p, s, chunk, cfg), d) for name, chunk, d in proposals(state, batch, b, noise, cfg, spec)
        ]
        for e, q_data in enumerate(data):
            terms = [(name, q[e], density) for name, q, density in valued]
            rows[e].append((soft_maximum(terms, q_data, form_of(cfg, spec), cfg.cql_temp), -q_data))
    return rows


def push_down(p: Params, *args: Any) -> Tensor:
    return sum(mean([down for down, _ in row]) for row in deltas(p, *args))


def pull_up(p: Params, *args: Any) -> Tensor:
    return sum(mean([up for _, up in row]) for row in deltas(p, *args))


def penalty(p: Params, state: Any, batch: Any, noise: Noise, cfg: Any, spec: Any) -> Tensor:
    """Sum over critics of mean Delta."""
    total = torch.zeros((), dtype=torch.float64)
    for row in deltas(p, state, batch, noise, cfg, spec):
        clamped = []
        for down, up in row:
            delta, low = down + up, cfg.cql_clip_diff_min
            clamped.append(delta if low is None or delta > low else torch.full_like(delta, low).detach())
        total = total + mean(clamped)
    return total


def critic_loss(p: Params, state: Any, batch: Any, noise: Noise, cfg: Any, spec: Any) -> Tensor:
    loss = td_loss(p, targets(state, batch, noise, cfg, spec), batch, cfg)
    if not cfg.cql_alpha:
        return loss
    excess = penalty(p, state, batch, noise, cfg, spec) - cfg.num_critics * (cfg.lagrange_gap or 0.0)
    return loss + alpha_prime(state, cfg) * cfg.cql_alpha * excess


def alpha_prime_loss(p: Params, state: Any, batch: Any, noise: Noise, cfg: Any, spec: Any) -> Tensor:
    """L_alpha' as a function of log alpha'."""
    if cfg.lagrange_gap is None:
        return 0 * p["log"]
    mean_delta = float(penalty(state["critic"], state, batch, noise, cfg, spec)) / cfg.num_critics
    return -torch.exp(p["log"]) * cfg.cql_alpha * (mean_delta - cfg.lagrange_gap)


def actor_loss(p: Params, state: Any, batch: Any, noise: Noise, cfg: Any, spec: Any, done: int = 0) -> Tensor:
    """L_actor after `done` updates, against the critics in `state`."""
    terms = []
    for b in range(len(batch.action)):
        s = condition(batch.obs, b)
        action, log_pi = draw(p, s, noise["eps"][b], spec.pred_horizon, cfg, spec)
        if done < cfg.bc_steps:
            climbed = log_prob(p, s, batch.action[b], cfg, spec)
        else:
            climbed = torch.stack(critics(state["critic"], s, action[: spec.q_horizon], cfg)).min()
        terms.append(temperature(state, cfg) * log_pi - climbed)
    return mean(terms)


def temperature_loss(p: Params, state: Any, batch: Any, noise: Noise, cfg: Any, spec: Any) -> Tensor:
    """L_temp as a function of log(temperature / init_temperature); the policy in `state` is the one before its step."""
    given = cfg.target_entropy
    target = -0.5 * spec.pred_horizon * spec.action_dim if given is None else given
    log_pis = [
        float(draw(state["policy"], condition(batch.obs, b), noise["eps"][b], spec.pred_horizon, cfg, spec)[1])
        for b in range(len(batch.action))
    ]
    return -(math.log(cfg.init_temperature) + p["log_factor"]) * (mean(log_pis) + target)


class Reference:
    """A training run: alpha' and the critics, then the policy against the new critics, and the temperature."""

    trained = ("alpha_prime", "critic", "policy", "temperature")

    def __init__(self, state: Any, cfg: Any, spec: Any):
        self.state = {k: double(state[k]) for k in ("acting", "critic_target", *self.trained)}
        self.cfg, self.spec, self.t = cfg, spec, 0
        self.moments = {name: {k: [0 * v, 0 * v] for k, v in self.state[name].items()} for name in self.trained}

    def update(self, batch: Any, noise: Noise) -> None:
        batch, noise, cfg = type(batch)(*(double(field) for field in batch)), double(noise), self.cfg
        old = self.state
        args = (batch, noise, cfg, self.spec)
        critic = gradient(lambda p: critic_loss(p, old, *args), old["critic"])
        new = {"critic": self.step("critic", critic, cfg.lr_critic, clip=True)}
        multiplier = gradient(lambda p: alpha_prime_loss(p, old, *args), old["alpha_prime"])
        new["alpha_prime"] = self.step("alpha_prime", multiplier, cfg.lr_critic)
        seen = {**old, "critic": new["critic"]}
        actor = gradient(lambda p: actor_loss(p, seen, *args, done=self.t), old["policy"])
        new["policy"] = self.step("policy", actor, cfg.lr, clip=True)
        warmth = gradient(lambda p: temperature_loss(p, old, *args), old["temperature"])
        new["temperature"] = self.step("temperature", warmth, cfg.lr_temperature)
        target = {k: (1 - cfg.tau) * v + cfg.tau * new["critic"][k] for k, v in old["critic_target"].items()}
        self.state = {**new, "critic_target": target, "acting": {"policy": new["policy"]}}
        self.t += 1

    def step(self, name: str, grad: Params, lr: float, clip: bool = False) -> Params:
        norm = float(sum((g**2).sum() for g in grad.values())) ** 0.5
        scale = min(1.0, self.cfg.grad_clip / norm) if clip and self.cfg.grad_clip is not None else 1.0
        stepped, t = {}, self.t + 1
        for k, g in grad.items():
            m, v = self.moments[name][k]
            m, v = 0.9 * m + 0.1 * scale * g, 0.999 * v + 0.001 * (scale * g) ** 2
            self.moments[name][k] = [m, v]
            stepped[k] = self.state[name][k] - lr * (m / (1 - 0.9**t)) / (torch.sqrt(v / (1 - 0.999**t)) + 1e-8)
        return stepped
