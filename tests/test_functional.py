"""The shared pieces against numbers worked by hand and against torch."""

import math

import pytest
import torch
from torch import nn

from offrl_ray.algos import functional as fn
from offrl_ray.types import Batch, Spec
from tests.toys import SPEC, batch, dataset, episode, generator, same_bits

T = torch.tensor
GAMMA = T(0.5)


def chunks(reward: list[list[float]], mask: list[list[float]], terminal: list[float]) -> Batch:
    nothing = torch.zeros(len(reward), 1, 1)
    return Batch({"state": nothing}, nothing, nothing, T(reward), T(mask), T(terminal), {"state": nothing}, T(terminal))


def test_chunk_return_by_hand() -> None:
    """8 + 4/2 + 2/4 = 10.5 and 1/8 for a full chunk; a masked reward counts for nothing, nor does its discount."""
    b = chunks([[8, 4, 2], [8, 4, 99], [8, 99, 99]], [[1, 1, 1], [1, 1, 0], [1, 0, 0]], [0, 0, 0])
    ret, discount = fn.chunk_return(b, GAMMA)
    assert ret.tolist() == [10.5, 10.0, 8.0]
    assert discount.tolist() == [0.125, 0.25, 0.5]


def test_td_target_by_hand() -> None:
    """Reward scale 0.5 and V = 16: 5.25 + 2, 5 + 4, 4 + 8, and no bootstrap after a terminal."""
    b = chunks([[8, 4, 2], [8, 4, 9], [8, 9, 9], [8, 9, 9]], [[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 0, 0]], [0, 0, 0, 1])
    value = torch.full((4,), 16.0)
    assert fn.td_target(b, value, GAMMA, T(0.5), T(100.0)).tolist() == [7.25, 9.0, 12.0, 4.0]
    assert fn.td_target(b, value, GAMMA, T(0.5), T(8.0)).tolist() == [7.25, 8.0, 8.0, 4.0]
    assert fn.td_target(b, -10 * value, GAMMA, T(0.5), T(8.0)).tolist() == [-8.0, -8.0, -8.0, 4.0]


def test_a_chunk_of_one_step_is_one_step_td() -> None:
    g = generator()
    reward, value = torch.randn(50, 1, generator=g), torch.randn(50, generator=g)
    terminal = (torch.rand(50, generator=g) < 0.5).float()
    b = chunks(reward.tolist(), [[1.0]] * 50, terminal.tolist())
    y = fn.td_target(b, value, T(0.9), T(0.1), T(100.0))
    torch.testing.assert_close(y, 0.1 * reward[:, 0] + 0.9 * (1 - terminal) * value)


@pytest.mark.parametrize(
    ("terminated", "returns", "discounts", "terminal"),
    [
        ((), [1.75, 1.5, 1.0], [0.125, 0.25, 0.5], [0, 0, 0]),
        ((2,), [1.75, 1.5, 1.0], [0.125, 0.25, 0.5], [1, 1, 1]),
        ((1,), [1.5, 1.0, 1.0], [0.25, 0.5, 0.5], [1, 1, 0]),
    ],
    ids=["truncated", "terminated", "terminal inside"],
)
def test_chunks_of_8_in_an_episode_of_3(
    terminated: tuple[int, ...], returns: list[float], discounts: list[float], terminal: list[float]
) -> None:
    """Reward 1 each step: 1 + 1/2 + 1/4 from the first step; a chunk stops behind a terminal, or where the data do."""
    actions = torch.rand(3, 1, generator=generator()).numpy()
    data = dataset([episode([0, 1, 2, 3], actions, [1, 1, 1], terminated=terminated)], act_horizon=8, pred_horizon=8)
    b = data.batch(torch.arange(3))
    ret, discount = fn.chunk_return(b, GAMMA)
    assert ret.tolist() == returns
    assert discount.tolist() == discounts
    assert b.terminal.tolist() == terminal


@pytest.mark.parametrize(
    ("low", "high", "ends", "expected"),
    [
        (0.0, 1.0, True, (0.0, 0.1)),
        (0.0, 1.0, False, (0.0, 0.4)),
        (-3.0, 2.0, False, (-1.2, 0.8)),
        (1.0, 1.0, False, (0.0, 0.4)),
        (-1.0, -0.5, False, (-0.4, 0.0)),
    ],
)
def test_q_bounds_by_hand(low: float, high: float, ends: bool, expected: tuple[float, float]) -> None:
    spec = Spec(**{**SPEC.__dict__, "reward_low": low, "reward_high": high, "reward_ends_episode": ends})
    bounds = fn.q_bounds(spec, T(0.75), T(0.1))
    assert tuple(b.item() for b in bounds) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("lr", [1e-3, 0.3])
def test_adam_takes_the_steps_of_torch(lr: float) -> None:
    g = generator()
    shapes = {"w": (3, 4), "b": (4,), "c": ()}
    params = {k: torch.zeros(s) for k, s in shapes.items()}
    mine, opt = dict(params), fn.adam_init(params)
    theirs = {k: p.double().requires_grad_() for k, p in params.items()}
    optimiser = torch.optim.Adam(theirs.values(), lr=lr)
    for _ in range(20):
        grad = {k: torch.randn(s, generator=g) * 10 ** torch.randn(s, generator=g) for k, s in shapes.items()}
        mine, opt = fn.adam(mine, fn.ravel(grad), opt, T(lr))
        for k, p in theirs.items():
            p.grad = grad[k].double()
        optimiser.step()
        for k, p in theirs.items():
            torch.testing.assert_close(mine[k].double(), p.detach(), rtol=1e-5, atol=1e-5 * lr)


def test_adams_bias_correction_is_exact_to_rounding() -> None:
    """The first step on any gradient is lr * g / (|g| + eps)."""
    params = {"w": torch.zeros(1)}
    stepped, _ = fn.adam(params, T([0.5]), fn.adam_init(params), T(1.0))
    assert stepped["w"].item() == pytest.approx(-1.0, rel=1e-6)


@pytest.mark.parametrize(("max_norm", "scale"), [(13.0, 1.0), (6.5, 0.5), (math.inf, 1.0)])
def test_clip_norm_scales_the_whole_vector(max_norm: float, scale: float) -> None:
    grad = T([3.0, -4.0, 12.0])
    clipped, norm = fn.clip_norm(grad, T(max_norm))
    assert norm == 13.0
    torch.testing.assert_close(clipped, scale * grad)


def test_clip_norm_leaves_a_zero_gradient_zero() -> None:
    for max_norm in (1.0, math.inf):
        assert fn.clip_norm(torch.zeros(3), T(max_norm))[0].tolist() == [0.0, 0.0, 0.0]


def test_clip_norm_agrees_with_torch() -> None:
    grad = torch.randn(100, generator=generator())
    p = nn.Parameter(torch.zeros(100))
    p.grad = grad.clone()
    norm = nn.utils.clip_grad_norm_([p], 1.5)
    mine = fn.clip_norm(grad, T(1.5))
    torch.testing.assert_close(mine[0], p.grad, rtol=1e-5, atol=0)
    torch.testing.assert_close(mine[1], norm)


def test_polyak_by_hand() -> None:
    target, online = {"w": T([4.0, 8.0])}, {"w": T([8.0, 0.0])}
    assert fn.polyak(target, online, T(0.25))["w"].tolist() == [5.0, 6.0]
    assert same_bits(fn.polyak(target, online, T(0.0))["w"], target["w"])
    assert same_bits(fn.polyak(target, online, T(1.0))["w"], online["w"])


def test_encode_puts_frames_of_sorted_keys_side_by_side() -> None:
    obs = {"b": T([[[1.0, 2.0], [3.0, 4.0]]]), "a": T([[[5.0], [6.0]]])}
    assert fn.encode(obs).tolist() == [[5.0, 6.0, 1.0, 2.0, 3.0, 4.0]]


def test_condition_dim_is_the_width_of_encode() -> None:
    assert fn.encode(batch(generator()).obs).shape == (16, fn.condition_dim(SPEC))


def test_unravel_is_the_inverse_of_ravel() -> None:
    params = {"w": torch.randn(2, 3), "s": T(4.0), "b": torch.randn(3)}
    back = fn.unravel(fn.ravel(params), params)
    assert back.keys() == params.keys()
    assert all(same_bits(back[k], params[k]) for k in params)


def test_select_undoes_stack() -> None:
    trees = [{"a": {"b": torch.randn(2)}, "c": T(float(i))} for i in range(3)]
    stacked = fn.stack(trees)
    assert stacked["a"]["b"].shape == (3, 2)
    for i, tree in enumerate(trees):
        assert same_bits(fn.select(stacked, i)["a"]["b"], tree["a"]["b"])
        assert fn.select(stacked, i)["c"] == i


def test_parameters_follow_from_the_generator_alone() -> None:
    def build() -> nn.Module:
        return nn.Linear(3, 2)

    first = fn.init_params(build, generator(0))
    before = torch.get_rng_state()
    torch.manual_seed(9)
    again, other = fn.init_params(build, generator(0)), fn.init_params(build, generator(1))
    torch.set_rng_state(before)
    assert same_bits(first["weight"], again["weight"])
    assert not same_bits(first["weight"], other["weight"])


def test_initialisation_does_not_reseed_the_global_generators_of_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    reseeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", reseeded.append)
    fn.init_params(lambda: nn.Linear(3, 2), generator())
    assert not reseeded


def test_a_stateless_module_is_the_module() -> None:
    built = nn.Sequential(nn.Linear(3, 2), nn.Mish())
    params = {k: v.detach() for k, v in built.named_parameters()}
    x = torch.randn(4, 3)
    f = fn.stateless(lambda: nn.Sequential(nn.Linear(3, 2), nn.Mish()))
    assert same_bits(f(params, x), built(x).detach())


def quadratic(params: fn.Params, scale: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    loss = scale * (params["w"].square().sum() + 3 * params["b"])
    return loss, {"loss": loss, "b": params["b"]}


@pytest.mark.parametrize("stacked", [False, True])
def test_gradient_by_hand_alone_and_stacked(stacked: bool) -> None:
    """d/dw = 2 s w, d/db = 3 s, and 0 for what the loss does not read."""
    params = {"w": T([1.0, -2.0]), "unread": T([5.0]), "b": T(4.0)}
    if stacked:
        several = fn.stack([params, params])
        vectors, metrics = torch.vmap(lambda p, s: fn.gradient(quadratic, p, s))(several, T([1.0, 10.0]))
        vector, loss = vectors[1], metrics["loss"][1]
    else:
        vector, metrics = fn.gradient(quadratic, params, T(10.0))
        loss = metrics["loss"]
    assert vector.tolist() == [20.0, -40.0, 0.0, 30.0]
    assert loss == 10 * (5 + 12)
    assert not any(t.requires_grad for t in (vector, *metrics.values(), *params.values()))


def test_expectile_loss_by_hand() -> None:
    u = T([-2.0, 0.0, 3.0])
    assert fn.expectile_loss(u, T(0.75)).tolist() == [0.25 * 4, 0.0, 0.75 * 9]
    assert fn.expectile_loss(u, T(0.5)).tolist() == [0.5 * 4, 0.0, 0.5 * 9]
