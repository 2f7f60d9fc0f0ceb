import dataclasses
import gzip
from dataclasses import replace
from pathlib import Path

import pytest

from offrl_ray.errors import UsageError
from offrl_ray.records import FILE
from results_analysis.load import load
from results_analysis.measures import values
from tests import synthetic


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    def make(point: dict[str, float], seed: int) -> synthetic.Run:
        q = {"q_mean": lambda at: seed + at}
        return synthetic.Run(point["algo.alpha"], q, stopped=0.5 if seed == 2 and point["algo.alpha"] else None)

    return synthetic.write(tmp_path / "grid", synthetic.sweep(make, {"algo.alpha": [0.0, 1.0]}, seeds=(0, 1, 2)))


def test_reports_and_evaluations_are_what_the_seeds_did(folder: Path) -> None:
    lost = load(folder).trials[1].seeds[2]
    assert (lost.diverged_at, lost.final, lost.finished) == (500, None, False)
    assert lost.train.steps.tolist() == [100, 200, 300, 400, 500]
    whole = load(folder).trials[1].seeds[1]
    assert whole.train.metrics["q_mean"].tolist() == pytest.approx([1 + k / 10 for k in range(1, 11)])
    assert whole.eval_curve("success_once") == [(k, 1.0) for k in (200, 400, 600, 800, 1000)]
    assert whole.final is not None
    assert whole.final.mean("q_gap") == pytest.approx(0.05 - 0.1 * 0.99**50)


def test_a_reason_is_told_once_whoever_else_tells_it(folder: Path) -> None:
    why = "seed 2: q_bound: Q is 0.3, above 0.11 for 3 reports; no true Q exceeds 0.1"
    trial = load(folder).trials[1]
    assert trial.end
    assert [replace(trial, end={**trial.end, "reason": told}).reason for told in (why, "", "all went well")] == [
        why,
        why,
        f"all went well; {why}",
    ]


def test_a_compressed_copy_of_the_records_is_the_same_sweep(folder: Path) -> None:
    copy = folder.parent / "grid.jsonl.gz"
    copy.write_bytes(gzip.compress((folder / FILE).read_bytes()))
    assert load(copy).label == load(folder).label == "grid"
    for a, b in zip(load(copy).trials, load(folder).trials, strict=True):
        assert values(a, "success_once") == values(b, "success_once") != {}


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign", "absent"])
def test_a_damaged_copy_is_refused_and_named(folder: Path, damage: str) -> None:
    content = bytearray(gzip.compress((folder / FILE).read_bytes()))
    content[len(content) // 2] ^= 0xFF if damage == "flipped" else 0
    copy = folder.parent / "grid.jsonl.gz"
    if damage != "absent":
        copy.write_bytes({"cut": content[:-20], "foreign": b"PK\x03\x04"}.get(damage, content))
    with pytest.raises(UsageError, match=r"grid\.jsonl\.gz") as e:
        load(copy)
    assert "expected a sweep" in e.value.problems[0]


@pytest.mark.parametrize("word", ["", "{0}", '"><script>alert(1)</script>', "\x1b[2J"])
def test_a_status_that_no_driver_writes_is_a_failure(folder: Path, word: str) -> None:
    trial = load(folder).trials[0]
    assert trial.status == "completed"
    assert dataclasses.replace(trial, end={**(trial.end or {}), "status": word}).status == "failed"
