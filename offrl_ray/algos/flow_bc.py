"""Flow-matching behaviour cloning: the baseline that every variant with a critic must beat.

    L_policy = L_flow = E (v(x_t, t) - (x_1 - x_0))^2,  x_t = (1 - t) x_0 + t x_1,  t ~ U(0, 1)

symbol  name            meaning
v       network         velocity of the chunk, given the observations
N       num_flow_steps  Euler steps of the sampler; a single one gives the mean action, as v(x_0, 0) = E x_1 - x_0
x_0     noise["x_0"]    N(0, I)
x_1     batch.action    the data's chunk

Rewards and terminals are never read. It is CPQL at alpha = 0 and consistency_weight = 0, without the critic.

Sources: flow matching, Lipman et al. 2023; rectified flow, Liu et al. 2023; as policy, Desperodoo/rlft.

Deviations from rlft: those of cpql.py that concern the policy.
"""

from typing import ClassVar, Literal

import torch
from torch import Generator

from offrl_ray.algos import functional as fn
from offrl_ray.algos.flow_policy import FlowPolicy, PolicyConfig
from offrl_ray.fields import Needs, config
from offrl_ray.types import Algorithm, Batch, Hparams, Metrics, Noise, Spec, State


@config
class Config(PolicyConfig):
    needs: ClassVar[Needs] = Needs(rewards=False)
    name: Literal["flow_bc"] = "flow_bc"
    """the variant"""

    def inert(self) -> frozenset[str]:
        return frozenset()


class _FlowBc(FlowPolicy):
    def update_noise(self, g: Generator, batch_size: int) -> Noise:
        return {"x_0": fn.normal_chunks(g, self.spec, batch_size), "t": self.uniform(g, batch_size)}

    def update(self, state: State, batch: Batch, noise: Noise, hp: Hparams) -> tuple[State, Metrics]:
        """Policy step, EMA."""
        part = fn.gradient(self.flow_term, state["policy"], batch, fn.encode(batch.obs), noise)
        new, metrics = self.policy_step(state, {"flow": (torch.ones_like(hp["lr"]), part)}, hp)
        metrics["loss"] = metrics["policy_loss"]
        return new | self.averaged(state, new, hp), metrics


def make(cfg: Config, spec: Spec) -> Algorithm:
    """Raises UsageError if the network does not fit the chunk."""
    f = _FlowBc(cfg, spec)
    return Algorithm(f.init, f.update_noise, f.update, f.act_noise, f.act)
