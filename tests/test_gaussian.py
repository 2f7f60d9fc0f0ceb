"""The tanh-Gaussian against torch's distributions, against integrals, and at its edges."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal, TransformedDistribution
from torch.distributions.transforms import AffineTransform, TanhTransform

from offrl_ray.algos import functional as fn
from offrl_ray.algos.gaussian import EDGE, TanhGaussian
from offrl_ray.types import Spec
from tests.toys import SPEC, generator, same_bits, window

T = torch.tensor
PI = TanhGaussian(SPEC, (16,), layer_norm=True, activation="mish")
MEAN, STD = T(SPEC.action_mean, dtype=torch.float64), T(SPEC.action_std, dtype=torch.float64)


def one_dimensional() -> TanhGaussian:
    one = {"action_dim": 1, "action_mean": (0.3,), "action_std": (0.5,), "pred_horizon": 1, "act_horizon": 1}
    return TanhGaussian(Spec(**{**SPEC.__dict__, **one, "q_horizon": 1}), (16,), True, "mish")


def chunks(size: int = 6, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Means, log deviations and noise of all magnitudes."""
    g = generator()
    shape = (size, SPEC.pred_horizon, SPEC.action_dim)
    mean, log_std, eps = (torch.randn(shape, generator=g, dtype=dtype) for _ in range(3))
    return 2 * mean, log_std - 1, eps


def test_samples_and_their_density_are_those_of_torch() -> None:
    mean, log_std, eps = chunks()
    theirs = Independent(TransformedDistribution(Normal(mean, log_std.exp()), [TanhTransform()]), 2)
    action, log_pi = PI.draw(mean, log_std, eps)
    raw = torch.tanh(mean + log_std.exp() * eps)
    torch.testing.assert_close(action, (raw - MEAN) / STD, rtol=1e-12, atol=1e-12)
    # beyond that torch's own inverse has lost the digits
    inside = (raw.abs() < 0.999).flatten(1).all(1)
    assert inside.sum() >= 1
    torch.testing.assert_close(log_pi[inside], theirs.log_prob(raw)[inside], rtol=1e-9, atol=1e-9)


def test_the_density_of_a_normalised_chunk_is_that_of_its_raw_form() -> None:
    mean, log_std, _ = chunks()
    raw = torch.empty_like(mean).uniform_(-0.99, 0.99, generator=generator(1))
    squashed = TransformedDistribution(Normal(mean, log_std.exp()), [TanhTransform()])
    mine = PI.log_density(mean, log_std, (raw - MEAN) / STD)
    torch.testing.assert_close(mine, squashed.log_prob(raw).sum((1, 2)))
    units = [TanhTransform(), AffineTransform(-MEAN / STD, 1 / STD)]
    normalised = TransformedDistribution(Normal(mean, log_std.exp()), units).log_prob((raw - MEAN) / STD)
    torch.testing.assert_close(mine, normalised.sum((1, 2)) - SPEC.pred_horizon * STD.log().sum())


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (1.0, 0.3), (-0.7, 0.05), (0.2, 1.5)])
def test_the_density_of_raw_actions_integrates_to_one_and_gives_the_entropy(mean: float, std: float) -> None:
    pi, at = one_dimensional(), 200_001
    raw = torch.linspace(-1, 1, at, dtype=torch.float64)[1:-1]
    mu, log_std = (torch.full((at - 2, 1, 1), x, dtype=torch.float64) for x in (mean, math.log(std)))
    density = pi.log_density(mu, log_std, ((raw - 0.3) / 0.5)[:, None, None]).exp()
    assert density.sum().item() * 2 / (at - 1) == pytest.approx(1.0, abs=2e-3)
    eps = torch.randn(at - 2, 1, 1, generator=generator(), dtype=torch.float64)
    entropy = -torch.xlogy(density, density).sum().item() * 2 / (at - 1)
    assert -pi.draw(mu, log_std, eps)[1].mean().item() == pytest.approx(entropy, abs=0.02)


def test_forward_and_drawing_make_sampling() -> None:
    params, cond = fn.init_params(PI.module, generator()), fn.encode(window(generator(1), 5))
    eps = torch.randn(5, SPEC.pred_horizon, SPEC.action_dim, generator=generator(2))
    mean, log_std = PI.moments(params, cond)
    action, log_pi = PI.sample(params, cond, eps)
    assert same_bits(action, PI.draw(mean, log_std, eps)[0])
    assert same_bits(PI.mode(params, cond), PI.sample(params, cond, 0 * eps)[0])
    torch.testing.assert_close(PI.log_prob(params, cond, action), log_pi)
    many, densities = PI.sample(params, cond, torch.stack([eps, -eps, 0 * eps]))
    assert many.shape == (3, *eps.shape)
    torch.testing.assert_close((many[0], densities[0]), (action, log_pi))


def test_each_output_of_the_network_is_one_mean_or_one_deviation() -> None:
    params, cond = fn.init_params(PI.module, generator()), fn.encode(window(generator(1), 5))
    assert params["out.bias"].numel() == 2 * PI.dim == 16
    before = torch.stack(PI.moments(params, cond))
    seen = set()
    for i in range(16):
        bias = params["out.bias"] + (torch.arange(16) == i)
        changed = (torch.stack(PI.moments({**params, "out.bias": bias}, cond)) != before).all(1)
        (at,) = changed.nonzero().tolist()
        assert at == [i // 8, i % 8 // 2, i % 2]
        seen.add(tuple(at))
    assert len(seen) == 16


def test_deviations_are_kept_in_range() -> None:
    params, cond = fn.init_params(PI.module, generator()), fn.encode(window(generator(1), 5))
    for bias, bound in ((100.0, 2.0), (-100.0, -20.0)):
        _, log_std = PI.moments({**params, "out.bias": torch.full_like(params["out.bias"], bias)}, cond)
        assert (log_std == bound).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_saturated_actions_are_the_bounds_and_their_density_is_finite(dtype: torch.dtype) -> None:
    low, high = T(SPEC.action_low, dtype=dtype), T(SPEC.action_high, dtype=dtype)
    mean, log_std, eps = (torch.zeros(1, SPEC.pred_horizon, SPEC.action_dim, dtype=dtype) for _ in range(3))
    for u, bound in ((60.0, high), (-60.0, low)):
        action, log_pi = PI.draw(mean + u, log_std, eps)
        assert (action == bound).all()
        # log N(u) - log(1 - tanh^2 u), with 1 - tanh^2 u -> 4 e^(-2 |u|)
        expected = PI.dim * (-0.5 * math.log(2 * math.pi) - math.log(4) + 2 * 60)
        assert log_pi.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_data_at_and_beyond_the_bounds_are_moved_to_the_same_edge_in_every_precision(dtype: torch.dtype) -> None:
    assert T(EDGE, dtype=torch.float32).double() == EDGE
    assert pytest.approx(1 - 1e-6, abs=1e-7) == EDGE
    u = math.atanh(EDGE)
    assert u == pytest.approx(7.25, abs=0.01)
    mean, log_std = (torch.zeros(3, SPEC.pred_horizon, SPEC.action_dim, dtype=dtype) for _ in range(2))
    raw = T([1.0, -1.0, 1.7], dtype=dtype)[:, None, None].expand_as(mean)
    log_pi = PI.log_density(mean, log_std, (raw - MEAN.to(dtype)) / STD.to(dtype))
    expected = PI.dim * (-0.5 * u**2 - 0.5 * math.log(2 * math.pi) - math.log(1 - EDGE**2))
    assert log_pi.tolist() == pytest.approx([expected] * 3, rel=1e-5)


def test_gradients_at_the_edge_and_in_saturation_are_finite() -> None:
    def loss(mean: Tensor, log_std: Tensor, at: Tensor) -> Tensor:
        action, log_pi = PI.draw(mean, log_std, torch.ones_like(mean))
        return (PI.log_density(mean, log_std, at) + log_pi).sum() + action.sum()

    mean, log_std, at = chunks(dtype=torch.float32)
    for scale in (1.0, 30.0):
        for g in torch.func.grad(loss, argnums=(0, 1))(scale * mean, log_std.clamp(-20, 2), 100 * at):
            assert g.isfinite().all()


def test_uniform_shares_are_spread_over_the_bounds() -> None:
    share = torch.tensor([[0.0, 0.0], [0.5, 0.5], [1.0, 1.0]])
    low, middle, high = fn.between_bounds(share, PI.spec)
    assert low.tolist() == pytest.approx([(-1 - 0.1) / 0.5, (-1 + 0.2) / 0.8])
    assert middle.tolist() == pytest.approx([-0.1 / 0.5, 0.2 / 0.8])
    assert high.tolist() == pytest.approx([(1 - 0.1) / 0.5, (1 + 0.2) / 0.8])
