"""RLPD: online soft actor-critic with prior data, on action chunks.

Plain SAC, made sample-efficient by three choices: batches that are half demonstrations, half own experience; LayerNorm
in the critics, which bounds how far they extrapolate; an ensemble with many critic updates per environment step.

    L_critic = 1/2 sum_E mean_B (Q_i(s, a_D) - y)^2,   y = rs R^(tau) + (1 - d) gamma^tau min_{i in M} Q'_i(s', a')
    L_actor  = E (temperature * log pi(a|s) - mean_E Q_i(s, a))

One update is one block: `cta_ratio` critic updates on disjoint minibatches, then one of actor and temperature on the
last of them. The environment executes one action chunk per block.

symbol       name             meaning
UTD, G       cta_ratio        critic updates per executed chunk and per actor update
E, M         num_critics, num_min   ensemble, and its random subset, drawn without replacement for every minibatch
             online.demo_ratio      share of demonstrations in every minibatch
             online.start_steps     random actions before the first update

Sources: RLPD, Ball et al. 2023 (arXiv 2302.02948), code ikostrikov/rlpd; the name cta_ratio, rail-berkeley/hil-serl.

Deviations from ikostrikov/rlpd: the critic loss is half the sum over critics, not the mean over them; the policy's
hidden layers have the critics' LayerNorm too; log std is clamped to [-5, 2]; the target's entropy is off by default
(it is on in its locomotion runs) and stands inside the discount, not outside as in hil-serl; an executed chunk may be
longer than one action. A time limit is never terminal.
"""

from typing import ClassVar, Literal

import torch
from torch import Generator

from offrl_ray.algos import functional as fn
from offrl_ray.algos import nets
from offrl_ray.algos.soft import Hidden, Soft, SoftConfig
from offrl_ray.fields import Count, Needs, NonNegative, Positive, Swept, config
from offrl_ray.types import Algorithm, Batch, Hparams, Metrics, Noise, Spec, State

ONE_STEP = {"data.obs_horizon": 1, "data.act_horizon": 1, "data.pred_horizon": 1, "env.max_steps": 50}


@config
class Config(SoftConfig):
    needs: ClassVar[Needs] = Needs(online=True, defaults=ONE_STEP)
    name: Literal["rlpd"] = "rlpd"
    """the variant"""
    cta_ratio: Count = 20
    """critic updates per actor update and executed chunk, each on a minibatch of its own"""
    lr_temperature: Swept[NonNegative] = 3e-4
    grad_clip: Swept[Positive | None] = None
    hidden: Hidden = (256, 256)
    critic_hidden: Hidden = (256, 256)
    activation: nets.Activation = "relu"

    def inert(self) -> frozenset[str]:
        """Fields that change no parameter of the trained networks, given the others."""
        return frozenset({"target_entropy"} if self.lr_temperature == 0 else set())


class _Rlpd(Soft):
    log_std_min = -5.0
    actor_q = "mean"

    def update_noise(self, g: Generator, batch_size: int) -> Noise:
        blocks = self.cfg.cta_ratio
        subset = torch.rand((blocks, self.cfg.num_critics), generator=g, device=g.device)
        size = batch_size // blocks
        return {
            "eps": fn.normal_chunks(g, self.spec, size),
            "eps_next": fn.normal_chunks(g, self.spec, blocks, size),
            "subset": subset,
        }

    def update(self, state: State, batch: Batch, noise: Noise, hp: Hparams) -> tuple[State, Metrics]:
        """One block; the metrics of the critic are means over its minibatches."""
        blocks = self.cfg.cta_ratio
        parts = fn.tree_map(lambda x: x.unflatten(0, (blocks, -1)), batch)
        told: list[Metrics] = []
        for i in range(blocks):
            part = fn.select(parts, i)
            cond = fn.encode(part.obs)
            state, metrics = self.critic_step(state, part, cond, {k: noise[k][i] for k in ("eps_next", "subset")}, hp)
            told.append(metrics)
        critic = {k: torch.stack([m[k] for m in told]).mean(0) for k in told[0]}
        state, actor = self.actor_step(state, part, cond, noise, hp)
        return state, self.summary(critic | actor, hp)


def make(cfg: Config, spec: Spec) -> Algorithm:
    """The algorithm; every batch holds `cta_ratio` minibatches."""
    return _Rlpd(cfg, spec).algorithm(cfg.cta_ratio)
