"""Flow-matching BC against the slow reference and against CPQL without critic terms."""

from functools import partial

import pytest
import torch
from torch import Tensor

from offrl_ray.algos import VARIANTS
from offrl_ray.algos import functional as fn
from offrl_ray.types import Batch, State
from tests import compare, toys
from tests.compare import agree
from tests.reference import cpql as ref_cpql
from tests.reference import flow_bc as ref
from tests.rows.kinds import Flat
from tests.toys import advance, algorithm, batch, different, generator, relative_error, steps


def lagging(state: State) -> State:
    return {**state, "acting": {"policy_ema": {k: 0.9 * v for k, v in state["policy"].items()}}}


problem = partial(compare.problem, "flow_bc", prepare=lagging)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("settings", [{}, {"network.blocks": 2}], ids=["one layer", "two layers"])
def test_value_and_gradient_agree_with_the_reference(settings: Flat, dtype: torch.dtype, bound: float) -> None:
    p = problem(settings, dtype=dtype)
    state, metrics = p.alg.update(p.state, p.batch, p.noise, p.hp)
    args = (ref_cpql.double(p.state), Batch(*map(ref_cpql.double, p.batch)), ref_cpql.double(p.noise))
    start = ref_cpql.double(p.state["policy"])
    expected = ref.policy_loss(start, *args, p.cfg, toys.SPEC).item()
    for name in ("flow_loss", "policy_loss", "actor_loss", "loss"):
        assert metrics[name].item() == pytest.approx(expected, rel=bound)
    grad = ref_cpql.gradient(lambda x: ref.policy_loss(x, *args, p.cfg, toys.SPEC), start)
    agree(fn.unravel(10 * state["policy_opt"]["m"], p.state["policy"]), grad, bound)
    assert metrics["grad_norm_flow"].item() == pytest.approx(fn.ravel(grad).norm().item(), rel=bound)


def test_a_run_of_20_updates_is_the_references() -> None:
    p = problem({"grad_clip": 0.5, "warmup_steps": 5, "ema_decay": 0.9})
    reference, state = ref.Reference(p.state, p.cfg, toys.SPEC), p.state
    for i in range(20):
        data = Batch(*(fn.tree_map(Tensor.double, field) for field in batch(generator(i), 3)))
        noise = fn.tree_map(Tensor.double, p.alg.update_noise(generator(100 + i), 3))
        state, _ = p.alg.update(state, data, noise, p.hp)
        reference.update(data, noise)
    assert max(relative_error({k: state[k] for k in reference.state}, reference.state).values()) < 1e-5


def test_it_is_the_policy_of_cpql_with_nothing_but_flow_matching() -> None:
    common: Flat = {"grad_clip": 0.5, "warmup_steps": 5.0, "ema_decay": 0.9}
    cpql, hp = algorithm("cpql", common, {"alpha": 0.0, "consistency_weight": 0.0})
    bc, bc_hp = algorithm("flow_bc", common)
    data = steps(cpql, 20)
    theirs = advance(cpql, hp, cpql.init(generator()), data)
    mine = advance(bc, bc_hp, bc.init(generator()), data)
    assert not different(mine, {k: theirs[k] for k in mine})


def test_it_reads_no_reward_and_has_no_value() -> None:
    assert not VARIANTS["flow_bc"][0].needs.rewards
    alg, hp = algorithm("flow_bc")
    start = alg.init(generator())
    ((data, noise),) = steps(alg, 1)
    unknown = {k: getattr(data, k) * torch.nan for k in ("reward", "mask", "terminal", "q_action", "step")}
    blind = data._replace(**unknown, next_obs={k: v * torch.nan for k, v in data.next_obs.items()})
    states, metrics = zip(*(alg.update(start, b, noise, hp) for b in (data, blind)), strict=True)
    assert not different(*states)
    assert metrics[0].keys() == {
        *("loss", "policy_loss", "actor_loss", "flow_loss", "grad_norm_flow", "grad_norm_policy")
    }
