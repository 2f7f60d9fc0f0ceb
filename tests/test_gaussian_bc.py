"""Cloning with the tanh-Gaussian, against sac's reference and the fit that its data allow."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from offrl_ray.algos import functional as fn
from offrl_ray.algos import sac
from offrl_ray.types import Batch
from tests import compare
from tests.compare import agree
from tests.reference import sac as ref
from tests.rows.kinds import Flat
from tests.test_probes import trained
from tests.toys import SPEC, advance, algorithm, dataset, different, episode, generator, run_config, steps

LOSS = pytest.mark.parametrize("loss", ["mse", "nll"])
problem = partial(compare.problem, "gaussian_bc")


def mode(p: ref.Params, s: Tensor, cfg: object) -> Tensor:
    eps = torch.zeros(SPEC.pred_horizon, SPEC.action_dim, dtype=torch.float64)
    return ref.sample(p, s, eps, cfg, SPEC)[0]


def expected(p: ref.Params, b: Batch, cfg: object, loss: str) -> Tensor:
    terms = []
    for i in range(len(b.action)):
        s = ref.condition(b.obs, i)
        if loss == "nll":
            terms.append(-ref.log_prob(p, s, b.action[i], cfg, SPEC))
        else:
            terms += list((mode(p, s, cfg) - b.action[i]).flatten() ** 2)
    return ref.mean(terms)


@LOSS
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("network", [{}, {"layer_norm": False, "activation": "tanh"}], ids=["mish", "tanh"])
def test_values_and_gradients_agree_with_the_reference(
    loss: str, network: Flat, dtype: torch.dtype, bound: float
) -> None:
    p = problem({"loss": loss}, network, dtype=dtype)
    after, metrics = p.alg.update(p.state, p.batch, p.noise, p.hp)
    start, data = ref.double(p.state["policy"]), Batch(*map(ref.double, p.batch))
    for name, kind, sign in (("bc_loss", "mse", 1), ("log_pi_data", "nll", -1), ("loss", loss, 1)):
        value = expected(start, data, p.cfg, kind).item()
        assert metrics[name].item() == pytest.approx(sign * value, rel=bound)
    mine = fn.unravel(10 * after["policy_opt"]["m"], p.state["policy"])
    agree(mine, ref.gradient(lambda x: expected(x, data, p.cfg, loss), start), bound)


def test_it_acts_with_the_mode() -> None:
    p = problem()
    chunk = p.alg.act(p.state, p.batch.obs, {})
    for i in range(len(chunk)):
        whole = mode(ref.double(p.state["policy"]), ref.condition(p.batch.obs, i), p.cfg)
        agree({"": chunk[i]}, {"": whole[SPEC.act_offset : SPEC.act_offset + SPEC.act_horizon]}, 1e-9)


def test_the_network_is_sac_s() -> None:
    mine, theirs = (run_config(v).algo for v in ("gaussian_bc", "sac"))
    policy = sac.make(theirs, SPEC).init(generator())["policy"]
    alg, _ = algorithm("gaussian_bc")
    assert {k: v.shape for k, v in alg.init(generator())["policy"].items()} == {k: v.shape for k, v in policy.items()}
    assert not different(alg.init(generator())["policy"], policy)
    for field in ("hidden", "layer_norm", "activation", "lr", "grad_clip"):
        assert getattr(type(mine)(), field) == getattr(type(theirs)(), field)


def test_rewards_are_not_read() -> None:
    assert not run_config("gaussian_bc").algo.needs.rewards
    alg, hp = algorithm("gaussian_bc")
    start, data = alg.init(generator()), steps(alg, 3)
    other = [(b._replace(reward=b.reward * torch.nan, q_action=b.q_action * torch.nan), z) for b, z in data]
    assert not different(advance(alg, hp, start, data), advance(alg, hp, start, other))


@LOSS
def test_it_learns_an_action_that_follows_the_observation(loss: str) -> None:
    g = np.random.default_rng(0)
    places = g.uniform(-0.8, 0.8, 200)
    episodes = [episode([x, x], np.array([[-x]]), [0.0], terminated=[0]) for x in places]
    data = dataset(episodes)
    agent = trained("gaussian_bc", data, 400, {"loss": loss, "lr": 3e-3, "hidden": (32, 32), "layer_norm": False})
    obs, state = data.batch(torch.arange(len(data))), fn.select(agent.snapshot.state, 0)
    chunk = agent.alg.act(state, obs.obs, {})
    error = (chunk - obs.action).abs().mean().item() * data.spec.action_std[0]
    assert error < 0.05
