"""Networks: published sizes, independence of ensemble members, and the same values stacked as alone."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from offrl_ray.algos import flow, nets
from offrl_ray.algos import functional as fn
from offrl_ray.types import Spec
from tests.toys import SPEC, generator, relative_error, same_bits

Build = Callable[[], nn.Module]


def count(build: Build) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build().parameters())


@pytest.mark.parametrize(
    ("condition", "widths", "time_dim", "parameters"),
    [
        (512, (64, 128, 256), 64, 5_925_447),
        (514, (64, 128, 256), 64, 5_932_615),
        (562, (64, 128, 256), 64, 6_104_647),
        (64, (64, 128, 256), 64, 4_319_815),
        (562, (256, 512, 1024), 256, 73_275_655),
    ],
)
def test_unet_has_the_published_size(condition: int, widths: tuple[int, ...], time_dim: int, parameters: int) -> None:
    assert count(lambda: nets.Unet1d(7, condition, widths, time_dim)) == parameters


@pytest.mark.parametrize(
    ("size", "hidden", "parameters"), [(2, (512, 512, 512), 1_691_650), (10, (256, 256, 256), 2_918_410)]
)
def test_critic_ensembles_have_the_published_size(size: int, hidden: tuple[int, ...], parameters: int) -> None:
    assert count(lambda: nets.EnsembleMlp(size, 56 + 562, hidden)) == parameters


def ensemble() -> tuple[Callable[..., Tensor], fn.Params]:
    def build() -> nn.Module:
        return nets.EnsembleMlp(3, 4, (8, 6))

    return fn.stateless(build), fn.init_params(build, generator())


def test_an_ensemble_members_output_depends_on_its_own_parameters_only() -> None:
    f, params = ensemble()
    x = torch.randn(5, 4, generator=generator(1))
    before = f(params, x)
    for e in range(3):
        for name in params:
            changed = {k: v.clone() for k, v in params.items()}
            changed[name][e] += torch.randn(changed[name][e].shape, generator=generator(2))
            after = f(changed, x)
            for other in range(3):
                assert same_bits(after[other], before[other]) == (other != e)


def test_inputs_may_come_apart_with_many_to_a_row() -> None:
    f, params = ensemble()
    x, each = torch.randn(5, 3, generator=generator(1)), torch.randn(5, 7, 1, generator=generator(2))
    together = f(params, x, each)
    assert together.shape == (3, 5, 7)
    for b in range(5):
        for i in range(7):
            alone = f(params, torch.cat([x[b], each[b, i]])[None])[:, 0]
            torch.testing.assert_close(together[:, b, i], alone, rtol=1e-5, atol=1e-7)


def test_ensemble_members_start_different() -> None:
    f, params = ensemble()
    out = f(params, torch.randn(5, 4, generator=generator(1)))
    assert out.shape == (3, 5)
    assert not any(torch.allclose(out[i], out[j], rtol=1e-2) for i in range(3) for j in range(i))


def test_an_ensemble_member_is_an_mlp_of_torch() -> None:
    f, params = ensemble()
    x = torch.randn(5, 4, generator=generator(1))
    for e in range(3):
        layers: list[nn.Module] = []
        for i, (inputs, outputs) in enumerate([(4, 8), (8, 6)]):
            linear, norm = nn.Linear(inputs, outputs), nn.LayerNorm(outputs)
            linear.weight.data, linear.bias.data = params[f"w.{i}"][e].T, params[f"b.{i}"][e, 0]
            layers += [linear, norm, nn.Mish()]
        last = nn.Linear(6, 1)
        last.weight.data, last.bias.data = params["w_out"][e].T, params["b_out"][e, 0]
        with torch.no_grad():
            torch.testing.assert_close(f(params, x)[e], nn.Sequential(*layers, last)(x)[:, 0], rtol=1e-5, atol=1e-7)


def test_critics_start_near_zero_with_orthogonal_layers() -> None:
    f, params = ensemble()
    assert f(params, torch.randn(100, 4, generator=generator(1))).abs().max() < 0.1
    w = params["w.1"][0]
    torch.testing.assert_close(w.T @ w, 2 * torch.eye(6), rtol=0, atol=1e-5)


NETWORKS: dict[str, Build] = {
    "unet": lambda: nets.Unet1d(2, 3, (16, 32), 8),
    "resmlp": lambda: nets.ResMlp(4, 2, 3, 16, 2, 8),
}
NETWORK = pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)


def data(g: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(5, 4, 2, generator=g), torch.rand(5, generator=g), torch.randn(5, 3, generator=g)


@NETWORK
def test_stacked_networks_and_their_gradients_equal_single_ones(build: Build) -> None:
    f = fn.stateless(build)

    def loss(params: fn.Params, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return f(params, x, t, cond).square().mean()

    members = [(fn.init_params(build, generator(i)), data(generator(10 + i))) for i in range(3)]
    params = fn.stack([p for p, _ in members])
    inputs = [torch.stack(x) for x in zip(*(xs for _, xs in members), strict=True)]
    values, grads = vmap(f)(params, *inputs), vmap(grad(loss))(params, *inputs)
    for i, (p, xs) in enumerate(members):
        alone = {"value": f(p, *xs), "grad": grad(loss)(p, *xs)}
        together = {"value": values[i], "grad": fn.select(grads, i)}
        assert max(relative_error(together, alone).values()) < 1e-5


@NETWORK
def test_every_parameter_of_a_velocity_network_gets_a_gradient(build: Build) -> None:
    f, params = fn.stateless(build), fn.init_params(build, generator())
    grads = grad(lambda p: f(p, *data(generator(1))).square().mean())(params)
    assert all(bool(g.any()) for g in grads.values())


@pytest.mark.parametrize("horizon", [2, 4])
def test_a_unet_that_would_normalise_one_or_two_numbers_is_refused(horizon: int) -> None:
    """One channel a group: a single number becomes 0 and two numbers become -1 and 1, whatever they were."""
    spec = Spec(**{**SPEC.__dict__, "pred_horizon": horizon, "act_horizon": 1})
    with pytest.raises(ValueError, match="widths"):
        flow.velocity_module(flow.Unet(widths=(8, 8)), spec)


@NETWORK
def test_samples_of_a_batch_do_not_mix(build: Build) -> None:
    f, params = fn.stateless(build), fn.init_params(build, generator())
    x, t, cond = data(generator(1))
    together = f(params, x, t, cond)
    assert together.shape == x.shape
    for i in range(5):
        alone = f(params, x[i, None], t[i, None], cond[i, None])
        assert relative_error({"": alone[0]}, {"": together[i]})[""] < 1e-5


@NETWORK
def test_velocity_depends_on_the_whole_chunk_on_time_and_on_the_condition(build: Build) -> None:
    f, params = fn.stateless(build), fn.init_params(build, generator())
    args = data(generator(1))
    for i, arg in enumerate(args):
        grads = grad(lambda x, i=i: f(params, *args[:i], x, *args[i + 1 :]).sum())(arg)
        assert bool((grads != 0).all())


def test_sinusoidal_by_hand() -> None:
    """Four numbers: frequencies 1 and 1/10000 of 100 t."""
    t = torch.tensor([0.0, 0.03])
    expected = [[0.0, 0.0, 1.0, 1.0], [math.sin(3), math.sin(3e-4), math.cos(3), math.cos(3e-4)]]
    torch.testing.assert_close(nets.sinusoidal(t, 4), torch.tensor(expected), rtol=1e-5, atol=1e-7)


def test_one_input_beside_each_other_is_the_joined_input() -> None:
    f, params = ensemble()
    x, each = torch.randn(5, 3, generator=generator(1)), torch.randn(5, 1, generator=generator(2))
    torch.testing.assert_close(f(params, x, each), f(params, torch.cat([x, each], dim=1)))


@pytest.mark.parametrize("activation", list(nets.ACTIVATIONS))
def test_no_activation_changes_what_a_network_was_given(activation: nets.Activation) -> None:
    x = torch.randn(5, 3, generator=generator(1))
    before = x.clone()
    nets.Mlp(3, (4, 4), 2, False, activation)(x)
    nets.EnsembleMlp(2, 3, (4, 4), False, activation)(x)
    assert same_bits(x, before)
