import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from offrl_ray.data import hdf5
from offrl_ray.data.dataset import Dataset, build, nbytes
from offrl_ray.data.hdf5 import Episode
from offrl_ray.types import Batch
from tests.conftest import ACTION, Length, WriteFile, trajectory
from tests.reference.chunks import Chunk, chunk

LENGTHS = [1, 2, 3, 7, 20, Length(1, ()), Length(7, (3,)), Length(20, (4, 5, 11, 19)), Length(20, ()), Length(20, (0,))]
SHAPE = {"control_mode": "pd_ee_delta_pose", "obs_horizon": 2, "act_horizon": 4, "pred_horizon": 8}


def episodes(lengths: list[Any] = LENGTHS, action_dim: int = ACTION) -> list[Episode]:
    rng = np.random.default_rng(1)
    made = []
    for i, n in enumerate(lengths):
        t = trajectory(rng, n if isinstance(n, Length) else Length(n), action_dim)
        reward = rng.normal(size=len(t["rewards"])).astype(np.float32)
        flags = [t[k] for k in hdf5.FLAGS]
        made.append(Episode(f"traj_{i}", {"state": t["obs"]}, t["actions"], reward, *flags))
    return made


def dataset(made: list[Episode], **changes: Any) -> Dataset:
    return Dataset(*build([made], **SHAPE | changes))


def raw(batch: Batch, data: Dataset, index: Any) -> Chunk:
    """One chunk of a batch in the units of the file."""
    s = data.spec

    def denormal(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Any:
        return x[index].double().numpy() * std + mean

    obs = (denormal(o["state"], s.obs_mean["state"], s.obs_std["state"]) for o in (batch.obs, batch.next_obs))
    actions = (denormal(a, s.action_mean, s.action_std) for a in (batch.action, batch.q_action))
    rest = (x[index].tolist() for x in (batch.reward, batch.mask, batch.terminal))
    return Chunk(next(obs), *actions, *rest, next(obs))


def all_chunks(made: list[Episode]) -> Iterator[tuple[int, Episode, int]]:
    """Index of a chunk, its episode and its step."""
    steps = [(e, t) for e in made for t in range(len(e.action))]
    yield from ((i, e, t) for i, (e, t) in enumerate(steps))


def assert_same(got: Chunk, expected: Chunk, place: str) -> None:
    for name, a, b in zip(Chunk._fields, got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5, err_msg=f"{name} at {place}")


@pytest.mark.parametrize("anchor", ["current", "oldest"])
@pytest.mark.parametrize("h_o", [1, 2, 3])
@pytest.mark.parametrize("h", [1, 4, 8])
@pytest.mark.parametrize("longer", [0, 5])
def test_every_chunk_equals_the_reference(anchor: str, h_o: int, h: int, longer: int) -> None:
    made, h_p = episodes(), h + (h_o - 1 if anchor == "oldest" else 0) + longer
    data = dataset(made, anchor=anchor, obs_horizon=h_o, act_horizon=h, pred_horizon=h_p)
    batch = data.batch(torch.arange(len(data)))
    assert len(data) == sum(len(e.action) for e in made)
    kind = {"h_o": h_o, "h": h, "h_p": h_p, "anchor": anchor, "control_mode": SHAPE["control_mode"]}
    for i, e, t in all_chunks(made):
        assert_same(raw(batch, data, i), chunk(e, t, **kind), f"{e.name}[{t}]")


@pytest.mark.parametrize("anchor", ["current", "oldest"])
@pytest.mark.parametrize(
    ("control_mode", "action_dim"),
    [
        ("pd_ee_delta_pose", 7),
        ("pd_ee_delta_pos", 4),
        ("pd_joint_delta_pos", 8),
        ("pd_ee_target_delta_pose", 7),
        ("pd_ee_target_delta_pos", 4),
        ("pd_joint_target_delta_pos", 8),
        ("pd_joint_pos", 8),
        ("pd_ee_pose", 7),
        ("pd_joint_vel", 8),
    ],
)
def test_padding_stands_still_in_delta_modes_and_repeats_in_others(
    anchor: str, control_mode: str, action_dim: int
) -> None:
    made = episodes([3, Length(7, (3,))], action_dim)
    kind = {"anchor": anchor, "control_mode": control_mode}
    data = dataset(made, act_horizon=4, pred_horizon=8, **kind)
    batch = data.batch(torch.arange(len(data)))
    for i, e, t in all_chunks(made):
        assert_same(raw(batch, data, i), chunk(e, t, h_o=2, h=4, h_p=8, **kind), f"{e.name}[{t}]")


def test_chunks_of_an_official_file_equal_the_reference(official: Any) -> None:
    made = list(hdf5.load([official])[0].episodes)[:3]
    data = dataset(made, act_horizon=8, pred_horizon=16)
    batch = data.batch(torch.arange(len(data)))
    kind = {"h_o": 2, "h": 8, "h_p": 16, "anchor": "current", "control_mode": "pd_ee_delta_pose"}
    for i, e, t in all_chunks(made):
        assert_same(raw(batch, data, i), chunk(e, t, **kind), f"{e.name}[{t}]")


def test_truncation_is_no_end_and_termination_is() -> None:
    data = dataset(episodes([Length(7, ()), Length(7, (2,))]), act_horizon=8, pred_horizon=8)
    batch = data.batch(torch.arange(14))
    assert batch.terminal.tolist() == [0.0] * 7 + [1.0] * 3 + [0.0] * 4
    assert batch.mask.sum(1).tolist() == [7, 6, 5, 4, 3, 2, 1] + [3, 2, 1] + [4, 3, 2, 1]


@pytest.mark.parametrize("anchor", ["current", "oldest"])
@pytest.mark.parametrize("h_o", [1, 2, 3])
def test_the_executed_part_of_a_prediction_starts_at_the_current_step(anchor: str, h_o: int) -> None:
    made = episodes()
    data = dataset(made, anchor=anchor, obs_horizon=h_o)
    batch = data.batch(torch.arange(len(data)))
    for i, e, t in all_chunks(made):
        np.testing.assert_allclose(raw(batch, data, i).action[data.spec.act_offset], e.action[t], rtol=0, atol=1e-5)


def test_population_axes_come_first_and_change_nothing() -> None:
    data = dataset(episodes())
    indices = torch.randint(len(data), (3, 5), generator=Generator().manual_seed(0))
    stacked, flat = data.batch(indices), data.batch(indices.flatten())
    for name, a, b in zip(Batch._fields, stacked, flat, strict=True):
        a, b = (a["state"], b["state"]) if isinstance(a, dict) else (a, b)
        assert a.shape == (3, 5, *b.shape[1:]), name
        assert a.flatten(0, 1).equal(b), name


def test_normalised_frames_and_actions_have_mean_0_and_std_1(write_file: WriteFile) -> None:
    made = hdf5.load([str(write_file([20, 30, 40]))])[0].episodes
    data = dataset(list(made), obs_horizon=1, act_horizon=1, pred_horizon=1)
    batch = data.batch(torch.arange(len(data)))
    last = [e.obs["state"][-1] for e in made]  # frames without a chunk of their own
    spec = data.spec
    frames = np.concatenate(
        [batch.obs["state"][:, 0], (last - np.array(spec.obs_mean["state"])) / spec.obs_std["state"]]
    )
    for x in (batch.action[:, 0].numpy(), frames):
        np.testing.assert_allclose(x.mean(0), 0, atol=1e-6)
        np.testing.assert_allclose(x.std(0), 1, atol=1e-5)


def test_bounds_of_the_spec_are_the_raw_actions_plus_and_minus_1() -> None:
    data = dataset(episodes())
    for bound, raw_bound in ((data.spec.action_low, -1), (data.spec.action_high, 1)):
        np.testing.assert_allclose(
            np.array(bound) * data.spec.action_std + data.spec.action_mean, raw_bound, atol=1e-12
        )


def test_an_almost_constant_dimension_does_not_amplify_its_noise() -> None:
    made = episodes([20])
    made[0].obs["state"][:, 2] = 0.5
    made[0].action[:, 3] = 0.25
    data = dataset(made)
    batch = data.batch(torch.arange(20))
    assert batch.obs["state"][..., 2].abs().max() == batch.q_action[:, 0, 3].abs().max() == 0


@pytest.mark.parametrize(("ends", "rewarded", "expected"), [((6,), 6, True), ((6,), 5, False), ((2, 6), 2, True)])
def test_spec_says_whether_every_reward_ends_its_episode(ends: tuple[int, ...], rewarded: int, expected: bool) -> None:
    made = episodes([Length(7, ends)])
    made[0].reward[:] = 0
    made[0].reward[rewarded] = -2.0
    spec = dataset(made).spec
    assert spec.reward_ends_episode is expected
    assert (spec.reward_low, spec.reward_high) == (-2.0, 0.0)


def test_files_are_drawn_by_their_weights_and_uniformly_within() -> None:
    groups = [episodes([2]), episodes([20, 20]), episodes([7])]
    data = Dataset(*build(groups, **SHAPE, weights=[1.0, 2.0, 5.0]))
    n = 40_000
    counts = data.draw(Generator().manual_seed(0), n).bincount(minlength=49).double()
    expected = torch.tensor([1 / 8 / 2] * 2 + [2 / 8 / 40] * 40 + [5 / 8 / 7] * 7) * n
    assert ((counts - expected) / expected.sqrt()).abs().max() < 4.5


def test_without_weights_every_step_is_equally_likely() -> None:
    data = Dataset(*build([episodes([2]), episodes([20, 20])], **SHAPE))
    counts = data.draw(Generator().manual_seed(0), 42_000).bincount(minlength=42).double()
    assert ((counts - 1000) / 1000**0.5).abs().max() < 4.5


@pytest.mark.parametrize("weights", [None, [1.0, 3.0]])
def test_draw_is_a_function_of_the_generator(weights: list[float] | None) -> None:
    data = Dataset(*build([episodes([7]), episodes([20])], **SHAPE, weights=weights))
    torch.manual_seed(0)
    first = data.draw(Generator().manual_seed(3), 64)
    torch.manual_seed(1)
    assert data.draw(Generator().manual_seed(3), 64).equal(first)
    assert not data.draw(Generator().manual_seed(4), 64).equal(first)


def test_read_only_arrays_are_shared_without_a_copy_or_a_warning() -> None:
    arrays, spec = build([episodes()], **SHAPE)
    for a in arrays.values():
        a.setflags(write=False)
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            data = Dataset(arrays, spec)
            batch = data.batch(data.draw(Generator().manual_seed(0), 8))
    finally:
        torch.set_warn_always(False)
    held = {t.data_ptr() for t in (data._rows, data._action, data._reward, *data._obs.values())}
    assert held == {arrays[k].__array_interface__["data"][0] for k in ("rows", "action", "reward", "obs.state")}
    assert batch.obs["state"].dtype == batch.action.dtype == batch.reward.dtype == torch.float32


def test_nbytes_is_the_memory_of_all_arrays() -> None:
    arrays, _ = build([episodes()], **SHAPE)
    assert nbytes(arrays) == sum(len(a.tobytes()) for a in arrays.values())
