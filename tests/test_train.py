"""The loop: reproducible, interruptible, and the same for one seed or several."""

from pathlib import Path

import pytest
import torch

from offrl_ray import checkpoint
from offrl_ray.algos import VARIANTS, make
from offrl_ray.algos.functional import select
from offrl_ray.config import RunConfig
from offrl_ray.train import Progress, Snapshot, start, train
from tests.rows import ROWS
from tests.toys import Flat, different, relative_error, run_config, same_bits, spec_of, walks

VARIANT = pytest.mark.parametrize("variant", VARIANTS)
SEEDS = pytest.mark.parametrize("seeds", [(7,), (0, 1, 2)], ids=["one seed", "three seeds"])


def config(variant: str, seeds: tuple[int, ...], report_every: int = 5, algo: Flat | None = None) -> RunConfig:
    return run_config(
        variant,
        algo or {},
        train_steps=20,
        train_report_every=report_every,
        train_batch_size=8,
        train_seeds=seeds,
        eval_every=20,
    )


def reports(cfg: RunConfig, resume: Snapshot | None = None, count: int = 99) -> list[Progress]:
    data = walks(spec_of(cfg.algo.name))
    alg = make(cfg.algo, data.spec)
    found = []
    for progress, _ in zip(train(cfg, alg, data, resume or start(cfg, alg)), range(count), strict=False):
        found.append(progress)
    return found


def tree(p: Progress) -> dict[str, object]:
    return {"state": p.snapshot.state, "generators": p.snapshot.generators, "metrics": p.metrics}


@VARIANT
@SEEDS
def test_equal_configs_give_bitwise_equal_runs(variant: str, seeds: tuple[int, ...]) -> None:
    one, two = (reports(config(variant, seeds)) for _ in range(2))
    assert [p.snapshot.step for p in one] == [5, 10, 15, 20]
    assert not any(different(tree(a), tree(b)) for a, b in zip(one, two, strict=True))


@VARIANT
@SEEDS
def test_a_run_resumed_from_a_checkpoint_equals_an_uninterrupted_one(
    variant: str, seeds: tuple[int, ...], tmp_path: Path
) -> None:
    cfg = config(variant, seeds)
    whole, first = reports(cfg), reports(cfg, count=2)
    spec = walks(spec_of(variant)).spec
    checkpoint.save(tmp_path, first[-1].snapshot, cfg, spec, 0.0, {})
    loaded = checkpoint.load(checkpoint.path_of(tmp_path, 10))
    assert (loaded.cfg, loaded.spec) == (cfg, spec)
    rest = reports(loaded.cfg, loaded.snapshot)
    assert [p.snapshot.step for p in rest] == [15, 20]
    assert not any(different(tree(a), tree(b)) for a, b in zip(whole[2:], rest, strict=True))


@VARIANT
def test_stacked_seeds_equal_single_runs(variant: str) -> None:
    stacked = reports(config(variant, (0, 1, 2)))[-1]
    for i in range(3):
        single = reports(config(variant, (i,)))[-1]
        assert same_bits(stacked.snapshot.generators[i], single.snapshot.generators[0])
        for mine, alone in ((stacked.snapshot.state, single.snapshot.state), (stacked.metrics, single.metrics)):
            assert max(relative_error(select(mine, i), select(alone, 0)).values()) < 1e-5


@VARIANT
def test_a_member_is_the_same_whatever_its_neighbours(variant: str) -> None:
    one, two = (reports(config(variant, seeds))[-1] for seeds in ((0, 1, 2), (0, 5, 9)))
    assert not different(*(select(tree(p), 0) for p in (one, two)))
    assert different(*(select(p.snapshot.state, 1) for p in (one, two)))


@VARIANT
def test_a_report_holds_the_mean_over_its_updates_and_changes_nothing(variant: str) -> None:
    each, whole = (reports(config(variant, (0, 1), report_every=n)) for n in (1, 20))
    assert not different(each[-1].snapshot.state, whole[-1].snapshot.state)
    for name, mean in whole[0].metrics.items():
        torch.testing.assert_close(torch.stack([p.metrics[name] for p in each]).mean(0), mean, rtol=1e-5, atol=1e-6)


@VARIANT
def test_a_finished_run_trains_no_further(variant: str) -> None:
    cfg = config(variant, (0,))
    assert reports(cfg, reports(cfg)[-1].snapshot) == []


@VARIANT
def test_a_snapshot_is_not_changed_by_what_follows(variant: str) -> None:
    cfg, trained = config(variant, (0,)), next(iter(ROWS[variant].optimisers))
    data = walks(spec_of(variant))
    alg = make(cfg.algo, data.spec)
    progress = train(cfg, alg, data, start(cfg, alg))
    first = next(progress)
    kept = {k: t.clone() for k, t in first.snapshot.state[trained].items()}
    list(progress)
    assert not different(first.snapshot.state[trained], kept)


def test_the_loop_pauses_at_reports_at_evaluations_and_at_the_end() -> None:
    sizes = {"train_steps": 11, "train_report_every": 4, "eval_every": 6, "train_batch_size": 8}
    assert [p.snapshot.step for p in reports(run_config("cpql", {}, **sizes))] == [4, 6, 8, 11]
