"""Behaviour cloning with the policy network of sac: what that network can do without a critic.

    mse   L = mean (tanh(mean(s)) - a_D)^2    in normalised units
    nll   L = -E log pi(a_D|s)                of raw chunks, pi the tanh-Gaussian

It acts with tanh(mean(s)), as sac does when it is judged. Beside sac it separates what the architecture cannot fit from
what the critic or the temperature spoils (claim S9 of seed document 002: a diagonal Gaussian over a chunk cannot).

Sources: gaussian.py's. Deviation from sac: no entropy term, so nll has nothing to keep the deviations up but the data.
"""

from typing import ClassVar, Literal

from torch import Generator, Tensor

from offrl_ray.algos import functional as fn
from offrl_ray.algos import nets
from offrl_ray.algos.gaussian import TanhGaussian
from offrl_ray.algos.soft import Hidden
from offrl_ray.fields import Needs, Positive, Swept, config
from offrl_ray.types import Algorithm, Batch, Hparams, Metrics, Noise, Obs, Spec, State


@config
class Config:
    needs: ClassVar[Needs] = Needs(rewards=False, defaults={"data.pred_horizon": 8})
    name: Literal["gaussian_bc"] = "gaussian_bc"
    """the variant"""
    loss: Literal["mse", "nll"] = "mse"
    """squared error of the mode, or negative log-likelihood"""
    lr: Swept[Positive] = 3e-4
    """Adam step size"""
    grad_clip: Swept[Positive | None] = 1.0
    """largest gradient norm, each member by itself; none switches it off"""
    hidden: Hidden = (256, 256, 256)
    """hidden layers of the policy"""
    layer_norm: bool = True
    """LayerNorm before each activation"""
    activation: nets.Activation = "mish"
    """of the hidden layers"""

    def inert(self) -> frozenset[str]:
        return frozenset()


class _GaussianBc:
    def __init__(self, cfg: Config, spec: Spec):
        self.cfg, self.spec = cfg, spec
        self.pi = TanhGaussian(spec, cfg.hidden, cfg.layer_norm, cfg.activation)

    def init(self, g: Generator) -> State:
        policy = fn.init_params(self.pi.module, g)
        return {"acting": {"policy": policy}, "policy": policy, "policy_opt": fn.adam_init(policy)}

    def bc_loss(self, policy: fn.Params, batch: Batch) -> tuple[Tensor, Metrics]:
        mean, log_std = self.pi.moments(policy, fn.encode(batch.obs))
        mse = (self.pi.squash(mean) - batch.action).square().mean()
        log_pi = self.pi.log_density(mean, log_std, batch.action).mean()
        loss = mse if self.cfg.loss == "mse" else -log_pi
        return loss, {"loss": loss, "actor_loss": loss, "bc_loss": mse, "log_pi_data": log_pi}

    def update(self, state: State, batch: Batch, noise: Noise, hp: Hparams) -> tuple[State, Metrics]:
        gradient, metrics = fn.gradient(self.bc_loss, state["policy"], batch)
        changed, norm = fn.descend(state, "policy", gradient, hp["lr"], hp["grad_clip"])
        return {**changed, "acting": {"policy": changed["policy"]}}, metrics | {"grad_norm_policy": norm}

    def act(self, state: State, obs: Obs, noise: Noise) -> Tensor:
        return fn.executed(self.pi.mode(state["acting"]["policy"], fn.encode(obs)), self.spec)


def make(cfg: Config, spec: Spec) -> Algorithm:
    c = _GaussianBc(cfg, spec)
    return Algorithm(c.init, fn.no_noise, c.update, fn.no_noise, c.act)
