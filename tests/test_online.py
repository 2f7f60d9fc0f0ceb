"""Experience gathered while training: the buffer, the walk through environments, and stopping in the middle of it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from offrl_ray.algos import make
from offrl_ray.config import RunConfig, resolve
from offrl_ray.data.dataset import Dataset
from offrl_ray.data.replay import Replay, prior
from offrl_ray.errors import UsageError
from offrl_ray.evaluate import LocalEvaluator
from offrl_ray.online import Job, LocalWalk, Online, execute, random_actions, random_frames
from offrl_ray.run import load_data, run
from offrl_ray.train import Snapshot, start, train
from offrl_ray.types import Batch, Spec
from tests.conftest import ACTION, OBS, ToyEnv
from tests.toys import dataset, different, episode, generator, relative_error

SIZES = {"obs_horizon": 2, "act_horizon": 3, "pred_horizon": 4}
TINY: dict[str, Any] = {
    "algo.name": "rlpd",
    "algo.cta_ratio": 2,
    "algo.hidden": [8],
    "algo.critic_hidden": [8],
    "algo.num_critics": 2,
    "data.obs_horizon": 2,
    "data.act_horizon": 2,
    "data.pred_horizon": 2,
    "env.id": "Toy-v1",
    "env.max_steps": 5,
    "online.start_steps": 12,
    "train.steps": 12,
    "train.report_every": 3,
    "train.batch_size": 4,
    "train.seeds": [0, 1],
    "eval.every": 6,
    "eval.episodes": 2,
}


def walks(count: int = 4) -> list[Any]:
    g = np.random.default_rng(0)
    return [
        episode(g.normal(size=n + 1), g.uniform(-1, 1, (n, 2)), g.uniform(-1, 2, n), terminated=[n - 1] * (i % 2))
        for i, n in enumerate((5, 7, 9, 6)[:count])
    ]


def toy_spec() -> Spec:
    cfg = config()
    return Spec(
        obs_shape={"state": (OBS,)},
        obs_mean={"state": (0.0,) * OBS},
        obs_std={"state": (1.0,) * OBS},
        action_dim=ACTION,
        action_mean=(0.0,) * ACTION,
        action_std=(1.0,) * ACTION,
        obs_horizon=cfg.data.obs_horizon,
        pred_horizon=cfg.data.pred_horizon,
        act_horizon=cfg.data.act_horizon,
        q_horizon=cfg.data.act_horizon,
        act_offset=0,
        reward_low=0.0,
        reward_high=1.0,
        reward_ends_episode=False,
    )


def config(**changes: Any) -> RunConfig:
    return resolve(TINY | changes)


def assert_equal(a: Batch, b: Batch) -> None:
    assert not different(a._asdict(), b._asdict())


def test_a_buffer_holds_what_a_data_set_of_the_same_episodes_does() -> None:
    fixed = dataset(walks(), **SIZES)
    grown = Replay(fixed.spec, "pd_joint_pos")
    for e in walks():
        grown.add(e)
    assert len(grown) == len(fixed) == 27
    everything = torch.arange(27)
    assert_equal(grown.batch(everything), fixed.batch(everything))


def test_a_buffer_keeps_everything_when_it_grows() -> None:
    few, many = Replay(dataset(walks(), **SIZES).spec), Replay(dataset(walks(), **SIZES).spec)
    few.add(walks()[0])
    for _ in range(200):
        for e in walks():
            many.add(e)
    assert len(many) == 200 * 27
    assert_equal(many.batch(torch.arange(5)), few.batch(torch.arange(5)))
    assert_equal(many.batch(torch.arange(27)), many.batch(torch.arange(27) + 199 * 27))


def test_a_saved_buffer_goes_on_as_the_original() -> None:
    one = Replay(dataset(walks(), **SIZES).spec)
    for e in walks(3):
        one.add(e)
    saved = one.pack()
    other = Replay(one.spec)
    other.unpack(saved)
    for replay in (one, other):
        replay.add(walks()[3])
    assert_equal(one.batch(torch.arange(27)), other.batch(torch.arange(27)))
    assert len(saved["rows"]) == 21, "what was saved has changed"


def test_a_job_ends_with_its_episode() -> None:
    env = ToyEnv(max_steps=5)
    begun = execute(env, Job(0, torch.zeros(0, ACTION)))
    assert (len(begun.obs["state"]), len(begun.reward)) == (1, 0)
    part = execute(env, Job(None, torch.zeros(3, ACTION)))
    assert (len(part.obs["state"]), len(part.reward), part.truncated.tolist()) == (3, 3, [False] * 3)
    rest = execute(env, Job(None, torch.zeros(3, ACTION)))
    assert (len(rest.reward), rest.truncated.tolist(), rest.terminated.any().item()) == (2, [False, True], False)
    up = execute(env, Job(0, torch.ones(9, ACTION) * 1.0))
    assert len(up.obs["state"]) == len(up.reward) + 1


def test_random_actions_fill_their_range() -> None:
    continuous, discrete = random_actions(0, (1000,), generator()), random_actions(3, (1000,), generator())
    assert -1 <= continuous.min() < -0.95 < 0.95 < continuous.max() < 1
    assert discrete.unique().tolist() == [0, 1, 2]


def online(cfg: RunConfig, demos: Dataset | None = None) -> tuple[Any, Online]:
    s = toy_spec()
    alg = make(cfg.algo, s)
    return alg, Online(cfg, alg, demos or Replay(s), [LocalWalk(lambda: ToyEnv(max_steps=5)) for _ in cfg.train.seeds])


def some_demos(marker: float) -> Dataset:
    demos = Replay(toy_spec())
    for _ in range(3):
        obs = np.full((6, OBS), marker, np.float32)
        demos.add(episode(obs.ravel(), np.zeros((5, ACTION)), [0, 0, 0, 0, 1.0], terminated=[4]))
    return demos


def batch_of(cfg: RunConfig, demos: Dataset | None, size: int) -> Batch:
    alg, source = online(cfg, demos)
    snapshot = start(cfg, alg)
    generators = [generator(s) for s in cfg.train.seeds]
    return source.sample(generators, size, {"acting": snapshot.state["acting"]})


@pytest.mark.parametrize(("ratio", "of_four"), [(0.5, 2), (0.25, 1), (1.0, 4), (0.0, 0)])
def test_every_minibatch_has_its_share_of_demonstrations(ratio: float, of_four: int) -> None:
    cfg = config(**{"online.demo_ratio": ratio})
    batch = batch_of(cfg, some_demos(99.0), 16)
    from_demos = (batch.obs["state"][:, :, 0, 0] == 99.0).view(2, 4, 4)
    assert (from_demos.sum(2) == of_four).all()


def test_without_demonstrations_all_is_own_experience() -> None:
    batch = batch_of(config(), None, 8)
    assert batch.obs["state"].shape == (2, 8, 2, OBS)
    assert not (batch.obs["state"] == 99.0).any()


def test_the_beginning_is_random_and_long_enough() -> None:
    cfg = config()
    alg, source = online(cfg)
    asked = []

    def act(state: Any, obs: Any, noise: Any) -> Any:
        asked.append(min(life.steps for life in source.lives))
        return alg.act(state, obs, noise)

    source.alg = alg._replace(act=act)
    source.sample([generator(0), generator(1)], 8, {"acting": start(cfg, alg).state["acting"]})
    # each member when its own beginning is over, and once more before its first batch
    assert len(asked) == 4
    assert asked[-2:] == [min(life.steps for life in source.lives)] * 2
    assert asked[-1] >= 12


def test_a_member_lives_the_same_alone_and_beside_another() -> None:
    settings = {"train.report_every": 12, "eval.every": 12}
    together, alone = config(**settings), config(**settings, **{"train.seeds": [1]})
    lives = []
    for cfg in (together, alone):
        alg, source = online(cfg)
        list(train(cfg, alg, source, start(cfg, alg)))
        lives.append(source.lives[-1].pack())
    assert max(relative_error(*lives).values()) < 1e-4


def test_an_update_executes_one_chunk_of_each_member() -> None:
    cfg = config(**{"train.steps": 30, "train.report_every": 30, "eval.every": 30})
    alg, source = online(cfg)
    (progress,) = train(cfg, alg, source, start(cfg, alg))
    # the last chunk is out; chunks that an episode's end cut are shorter
    assert all(12 + 29 <= s <= 12 + 2 + 29 * 2 for s in progress.metrics["online_env_steps"].tolist())
    assert (progress.metrics["online_episodes"] >= 12 // 5).all()


def test_what_was_lived_through_is_what_is_learned_from() -> None:
    """Every stored step moves the toy's position by a tenth of its first action, and pays the position."""
    cfg = config(**{"train.report_every": 12, "eval.every": 12})
    alg, source = online(cfg)
    list(train(cfg, alg, source, start(cfg, alg)))
    for life in source.lives:
        b = life.replay.batch(torch.arange(len(life.replay)))
        now, then = b.obs["state"][:, -1, 0], b.next_obs["state"][:, -1, 0]
        moved = (0.1 * b.q_action[:, :, 0] * b.mask).sum(1)
        torch.testing.assert_close(then, now + moved)
        torch.testing.assert_close(b.reward[:, 0], now + 0.1 * b.q_action[:, 0, 0])
        assert (b.terminal == (then > 0.7)).all()


def snapshots(cfg: RunConfig, begin: Snapshot | None = None) -> Iterator[Snapshot]:
    alg, source = online(cfg, some_demos(0.5))
    for progress in train(cfg, alg, source, begin or start(cfg, alg)):
        yield progress.snapshot


def test_a_run_that_was_stopped_anywhere_goes_on_as_if_it_had_not_been() -> None:
    cfg = config()
    whole = list(snapshots(cfg))
    assert [s.step for s in whole] == [3, 6, 9, 12]
    for i, begin in enumerate(whole[:-1]):
        again = list(snapshots(cfg, begin))
        for one, other in zip(again, whole[i + 1 :], strict=True):
            assert not different(one.state, other.state)
            assert not different(one.source, other.source)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("run", "evaluate"):
        monkeypatch.setattr(f"offrl_ray.{module}.open_env", lambda env: ToyEnv(max_steps=env.max_steps))


@pytest.mark.usefixtures("toy")
def test_a_run_without_files_learns_from_its_environment(tmp_path: Path) -> None:
    cfg = config()
    data = load_data(cfg)
    assert (data.env_id, data.files, data.spec.action_std) == ("Toy-v1", [], (1.0,) * ACTION)
    evaluator = LocalEvaluator(lambda: ToyEnv(max_steps=5))
    updates = list(run(cfg, prior(data.arrays, data.spec), tmp_path, evaluator, "toy", frozenset()))
    records = [r for u in updates for r in u.records]
    assert records[-1]["status"] == "completed"
    assert {r["step"] for r in records if r["kind"] == "eval"} == {6, 12}
    assert {"online_env_steps", "td_loss"} <= records[1]["metrics"].keys()
    again = list(run(cfg, prior(data.arrays, data.spec), tmp_path, evaluator, "toy", frozenset({6, 12})))
    assert again[-1].records[-1]["status"] == "completed"


@pytest.mark.usefixtures("toy")
def test_observations_are_standardised_by_what_random_actions_meet() -> None:
    frames = random_frames(ToyEnv(max_steps=5))["state"]
    s = load_data(config()).spec
    assert s.obs_mean["state"] == pytest.approx(frames.mean(0).tolist())
    assert s.obs_std["state"] == pytest.approx(frames.std(0).tolist())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"env.id": None}, ["env.id must be given", "data.files"]),
        ({"env.num_envs": 2, "env.sim_backend": "native"}, ["env.num_envs must be 1", "rlpd"]),
        ({"env.sim_backend": "physx_cuda"}, ["env.sim_backend must not be physx_cuda for rlpd", "physx_cpu"]),
        ({"algo.num_min": 3}, ["num_min must be <= num_critics", "3 > 2"]),
        ({"online.demo_ratio": 1.5}, ["online.demo_ratio", "1.5"]),
        ({"online.start_steps": 0}, ["online.start_steps", "0"]),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UsageError) as e:
        config(**changes)
    assert all(w in e.value.report() for w in words)


def test_offline_variants_have_no_online_settings() -> None:
    with pytest.raises(UsageError, match=r"online\.start_steps: unknown key"):
        resolve({"algo.name": "cpql", "data.files": ["a.h5"], "online.start_steps": 5})
