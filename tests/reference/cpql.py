"""CPQL in float64, one sample, one Euler step and one chunk step at a time.

Symbols as in the equations: x_0 noise, x_1 data, v velocity, s condition vector, Q_e critics, y target, C clip.
Where a gradient must stop, the function takes the stopped parameters as an argument of their own (`frozen`).
`cfg` and `spec` are read for their numbers only.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Params = dict[str, Tensor]


def double(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {k: double(v) for k, v in tree.items()}
    return tree.detach().double()


def mean(values: Sequence[Any]) -> Any:
    return sum(values) / len(values)


def layer_norm(h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mu = h.sum() / len(h)
    variance = ((h - mu) ** 2).sum() / len(h)
    return (h - mu) / torch.sqrt(variance + 1e-5) * weight + bias


def mish(h: Tensor) -> Tensor:
    return h * torch.tanh(torch.log(1 + torch.exp(h)))


def relu(h: Tensor) -> Tensor:
    return h * (h > 0)


def time_embedding(t: Tensor, dim: int) -> Tensor:
    half = dim // 2
    phase = [100 * t / 10_000 ** (i / (half - 1)) for i in range(half)]
    return torch.stack([torch.sin(p) for p in phase] + [torch.cos(p) for p in phase])


def condition(obs: dict[str, Tensor], b: int) -> Tensor:
    frames = [obs[key][b, frame].flatten() for key in sorted(obs) for frame in range(obs[key].shape[1])]
    return torch.cat(frames)


def velocity(p: Params, x: Tensor, t: Tensor, s: Tensor, time_dim: int) -> Tensor:
    """v(x, t, s) of one sample, [H_p, A]: pre-norm residual ReLU layers."""
    h = p["inp.weight"] @ torch.cat([x.flatten(), time_embedding(t, time_dim), s]) + p["inp.bias"]
    block = 0
    while f"layers.{block}.weight" in p:
        normed = relu(layer_norm(h, p[f"norms.{block}.weight"], p[f"norms.{block}.bias"]))
        h = h + p[f"layers.{block}.weight"] @ normed + p[f"layers.{block}.bias"]
        block += 1
    return (p["out.weight"] @ relu(h) + p["out.bias"]).reshape(x.shape)


def critic_outputs(p: Params, s: Tensor, chunk: Tensor) -> list[Tensor]:
    """What each critic's last layer says of one sample: LayerNorm, then Mish, after each hidden layer."""
    outputs = []
    for e in range(len(p["w_out"])):
        h = torch.cat([s, chunk.flatten()])
        layer = 0
        while f"w.{layer}" in p:
            h = h @ p[f"w.{layer}"][e] + p[f"b.{layer}"][e, 0]
            h = mish(layer_norm(h, p[f"norm_w.{layer}"][e, 0], p[f"norm_b.{layer}"][e, 0]))
            layer += 1
        outputs.append((h @ p["w_out"][e] + p["b_out"][e, 0])[0])
    return outputs


def bounds(cfg: Any, spec: Any) -> tuple[float, float]:
    times = 1.0 if spec.reward_ends_episode else 1 / (1 - cfg.gamma)
    return min(0.0, spec.reward_low) * cfg.reward_scale * times, max(0.0, spec.reward_high) * cfg.reward_scale * times


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def critics(p: Params, s: Tensor, chunk: Tensor, cfg: Any, spec: Any) -> list[Tensor]:
    """Q_e(s, a), e = 1 .. E."""
    low, high = bounds(cfg, spec)
    outputs = critic_outputs(p, s, chunk)
    return [low + (high - low) * sigmoid(out) for out in outputs] if cfg.bounded_critic else outputs


def clamp(action: Tensor, spec: Any) -> Tensor:
    """Raw bounds +-1 in normalised units; no gradient outside."""
    rows = []
    for row in action:
        entries = []
        for dim, value in enumerate(row):
            low, high = ((bound - spec.action_mean[dim]) / spec.action_std[dim] for bound in (-1, 1))
            entries.append(
                value if low < value < high else torch.full_like(value, low if value <= low else high).detach()
            )
        rows.append(torch.stack(entries))
    return torch.stack(rows)


def euler(p: Params, x: Tensor, t_0: float, t_1: float, s: Tensor, steps: int, time_dim: int) -> Tensor:
    for i in range(steps):
        t = torch.tensor(t_0 + i * (t_1 - t_0) / steps, dtype=torch.float64)
        x = x + (t_1 - t_0) / steps * velocity(p, x, t, s, time_dim)
    return x


def sample(p: Params, frozen: Params, z: Tensor, s: Tensor, steps: int, k: int, time_dim: int) -> Tensor:
    """x_1 from z in `steps` Euler steps, the last k of them with p, those before with `frozen`."""
    x = z
    for i in range(steps):
        t = torch.tensor(i / steps, dtype=torch.float64)
        x = x + velocity(p if i >= steps - k else frozen, x, t, s, time_dim) / steps
    return x


def squares(a: Tensor, b: Tensor) -> Tensor:
    return mean([(a[h, d] - b[h, d]) ** 2 for h in range(a.shape[0]) for d in range(a.shape[1])])


def flow_errors(p: Params, batch: Any, noise: dict[str, Tensor], cfg: Any) -> list[Tensor]:
    terms = []
    for b in range(len(batch.action)):
        x_0, x_1, t = noise["x_0"][b], batch.action[b], noise["t"][b]
        v = velocity(p, (1 - t) * x_0 + t * x_1, t, condition(batch.obs, b), cfg.network.time_dim)
        terms.append(squares(v, x_1 - x_0))
    return terms


def flow_loss(p: Params, batch: Any, noise: dict[str, Tensor], cfg: Any) -> Tensor:
    return mean(flow_errors(p, batch, noise, cfg))


def consistency_errors(p: Params, teacher: Params, batch: Any, noise: dict[str, Tensor], cfg: Any) -> list[Tensor]:
    terms = []
    for b in range(len(batch.action)):
        x_0, x_1, s = noise["x_0"][b], batch.action[b], condition(batch.obs, b)
        t_c = cfg.cons_t_min + (cfg.cons_t_max - cfg.cons_t_min) * float(noise["t_c"][b])
        delta = cfg.cons_delta_min + (cfg.cons_delta_max - cfg.cons_delta_min) * float(noise["delta"][b])
        t = min(t_c + delta, cfg.cons_t_max)
        x_t = (1 - t) * x_0 + t * x_1
        x_hat = euler(teacher, x_t, t, 1.0, s, cfg.teacher_steps, cfg.network.time_dim)
        v = velocity(p, x_t, torch.tensor(t, dtype=torch.float64), s, cfg.network.time_dim)
        terms.append(squares(v, x_hat - x_0))
    return terms


def consistency_loss(p: Params, teacher: Params, batch: Any, noise: dict[str, Tensor], cfg: Any) -> Tensor:
    return mean(consistency_errors(p, teacher, batch, noise, cfg))


def q_loss(
    p: Params, frozen: Params, critic: Params, batch: Any, noise: dict[str, Tensor], cfg: Any, spec: Any
) -> Tensor:
    """L_Q; its normaliser and the Euler steps before the last k use `frozen`."""
    n = 1 if cfg.q_grad_mode == "single_step" else cfg.num_flow_steps
    k = {"single_step": 1, "last_k": cfg.q_grad_steps, "whole_grad": n}[cfg.q_grad_mode]

    def values(params: Params) -> list[list[Tensor]]:
        rows = []
        for b in range(len(batch.action)):
            s = condition(batch.obs, b)
            a = clamp(sample(params, frozen, noise["z"][b], s, n, k, cfg.network.time_dim), spec)
            rows.append(critics(critic, s, a[: spec.act_horizon], cfg, spec))
        return rows

    q = values(p)
    if cfg.q_norm == "none":
        return -mean([row[0] for row in q])
    with torch.no_grad():
        fixed = values(frozen)
    if cfg.q_norm == "abs":
        up, by = [mean(row) for row in q], [mean(row) for row in fixed]
    else:
        climbed, other = (0, 1) if noise["coin"] < 0.5 else (1, 0)
        up, by = [row[climbed] for row in q], [row[other] for row in fixed]
    return -mean(up) / max(mean([abs(value) for value in by]), cfg.q_norm_eps)


def targets(teacher: Params, target: Params, batch: Any, noise: dict[str, Tensor], cfg: Any, spec: Any) -> list[float]:
    """y = clip(rs R^(tau) + (1 - d) gamma^tau min_e Q'_e(s', a'), -C, C)."""
    ys = []
    for b in range(len(batch.action)):
        s = condition(batch.next_obs, b)
        a = clamp(sample(teacher, teacher, noise["z_next"][b], s, cfg.num_flow_steps, 0, cfg.network.time_dim), spec)
        value = min(float(q) for q in critics(target, s, a[: spec.act_horizon], cfg, spec))
        ys.append(td_target(batch.reward[b], batch.mask[b], float(batch.terminal[b]), value, cfg))
    return ys


def td_target(reward: Tensor, mask: Tensor, terminal: float, value: float, cfg: Any) -> float:
    discount, ret = 1.0, 0.0
    for r, inside in zip(reward.tolist(), mask.tolist(), strict=True):
        if not inside:
            break
        ret += discount * r
        discount *= cfg.gamma
    y = cfg.reward_scale * ret + (0.0 if terminal else discount * value)
    return max(-cfg.q_target_clip, min(cfg.q_target_clip, y))


def td_loss(p: Params, ys: list[float], batch: Any, cfg: Any, spec: Any) -> Tensor:
    low, high = bounds(cfg, spec)
    terms = []
    for b, y in enumerate(ys):
        for out in critic_outputs(p, condition(batch.obs, b), batch.q_action[b]):
            if cfg.bounded_critic:
                share = max(0.0, min(1.0, (y - low) / (high - low)))
                terms.append(-share * torch.log(sigmoid(out)) - (1 - share) * torch.log(1 - sigmoid(out)))
            else:
                terms.append((out - y) ** 2)
    return mean(terms)


def push_down(p: Params, batch: Any, noise: dict[str, Tensor], cfg: Any, spec: Any) -> Tensor:
    """Mean Q at uniform actions."""
    values = []
    for b in range(len(batch.action)):
        action = torch.zeros_like(batch.q_action[b])
        for h in range(action.shape[0]):
            for d in range(action.shape[1]):
                raw = -1 + 2 * float(noise["random_action"][b, h, d])
                action[h, d] = (raw - spec.action_mean[d]) / spec.action_std[d]
        values += critics(p, condition(batch.obs, b), action, cfg, spec)
    return mean(values)


def pull_up(p: Params, batch: Any, cfg: Any, spec: Any) -> Tensor:
    """Mean Q at data actions, with a minus."""
    rows = [critics(p, condition(batch.obs, b), batch.q_action[b], cfg, spec) for b in range(len(batch.action))]
    return -mean([q for row in rows for q in row])


def gradient(loss: Any, p: Params) -> Params:
    """Gradient of `loss(p)` by autograd."""
    leaves = {k: v.clone().requires_grad_() for k, v in p.items()}
    return dict(zip(leaves, torch.autograd.grad(loss(leaves), list(leaves.values())), strict=True))


def policy_loss(p: Params, state: Any, batch: Any, noise: dict[str, Tensor], cfg: Any, spec: Any) -> Tensor:
    return (
        cfg.bc_weight * flow_loss(p, batch, noise, cfg)
        + cfg.consistency_weight * consistency_loss(p, state["acting"]["policy_ema"], batch, noise, cfg)
        + cfg.alpha * q_loss(p, state["policy"], state["critic"], batch, noise, cfg, spec)
    )


def critic_loss(p: Params, state: Any, batch: Any, noise: dict[str, Tensor], cfg: Any, spec: Any) -> Tensor:
    ys = targets(state["acting"]["policy_ema"], state["critic_target"], batch, noise, cfg, spec)
    loss = td_loss(p, ys, batch, cfg, spec)
    if cfg.random_action_penalty:
        penalty = push_down(p, batch, noise, cfg, spec) + pull_up(p, batch, cfg, spec)
        loss = loss + cfg.random_action_penalty * penalty
    return loss


class Reference:
    """A training run: parameters, Adam's moments and the number of updates."""

    def __init__(self, state: Any, cfg: Any, spec: Any):
        self.state = {k: double(v) for k, v in state.items() if not k.endswith("_opt")}
        self.cfg, self.spec, self.t = cfg, spec, 0
        self.moments = {name: {k: [0 * v, 0 * v] for k, v in self.state[name].items()} for name in self.losses()}

    def losses(self) -> dict[str, Any]:
        """Trained parameters -> their loss, a function of (parameters, state, batch, noise, cfg, spec)."""
        return {"policy": policy_loss, "critic": critic_loss}

    def update(self, batch: Any, noise: dict[str, Tensor]) -> None:
        batch = type(batch)(*(double(field) for field in batch))
        noise, before, cfg = double(noise), self.state, self.cfg
        self.t += 1
        warm = min(1.0, self.t / cfg.warmup_steps) if cfg.warmup_steps else 1.0
        new = {}
        for name, loss in self.losses().items():
            args = (before, batch, noise, cfg, self.spec)
            grad = gradient(lambda p, loss=loss, args=args: loss(p, *args), before[name])
            lr = cfg.lr * warm if name == "policy" else cfg.lr_critic
            new[name] = self.adam(name, before[name], self.clip(grad), lr)
        teacher = before["acting"]["policy_ema"]
        ema = {k: cfg.ema_decay * v + (1 - cfg.ema_decay) * new["policy"][k] for k, v in teacher.items()}
        new["acting"] = {"policy_ema": ema}
        if "critic_target" in before:
            pairs = ((k, v, new["critic"][k]) for k, v in before["critic_target"].items())
            new["critic_target"] = {k: (1 - cfg.tau) * old + cfg.tau * online for k, old, online in pairs}
        self.state = new

    def clip(self, grad: Params) -> Params:
        norm = float(sum((g**2).sum() for g in grad.values())) ** 0.5
        scale = 1.0 if self.cfg.grad_clip is None else min(1.0, self.cfg.grad_clip / norm)
        return {k: scale * g for k, g in grad.items()}

    def adam(self, name: str, params: Params, grad: Params, lr: float) -> Params:
        stepped = {}
        for k, g in grad.items():
            m, v = self.moments[name][k]
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            self.moments[name][k] = [m, v]
            stepped[k] = params[k] - lr * (m / (1 - 0.9**self.t)) / (torch.sqrt(v / (1 - 0.999**self.t)) + 1e-8)
        return stepped
