"""The first lines of the page: who leads, by how much, whether it is confirmed, and what is missing."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from results_analysis.answer import section
from results_analysis.blocks import Table, Text
from results_analysis.claims import judged
from results_analysis.load import Sweep, load
from results_analysis.words import Lang, speaker
from tests.story import only, read, texts
from tests.synthetic import Record, Run, sweep, write

SAY = speaker("en")
AXES = {"algo.alpha": [0.0, 0.1, 0.2]}
RATES = {0.0: 0.02, 0.1: 0.9, 0.2: 0.88}


def told(s: Sweep, lang: Lang = "en") -> Sequence[str]:
    say = speaker(lang)
    return texts(section([s], judged([s], say), say))


def log(rates: Mapping[float, float] = RATES, **more: Any) -> list[Record]:
    return list(sweep(lambda p, seed: Run(rates[p["algo.alpha"]]), AXES, **({"seeds": (0, 1, 2)} | more)))


def test_it_names_the_best_and_what_separates_it_from_the_next_and_the_worst(tmp_path: Path) -> None:
    best, following, worst, ask, command, claims = told(read(tmp_path, log()))
    assert best.startswith("toy: of 3 points alpha=0.")
    assert "has the best success_once: 0." in best
    assert best.endswith("(n = 3).")
    assert following.startswith("Against the next, alpha=0.")
    assert following.endswith("not shown to be more than luck.")
    assert worst.startswith("Against the worst, alpha=0, it is ahead by 0.")
    assert worst.endswith("the interval, paired by seed, excludes 0.")
    assert command == f"offrl-ray confirm {tmp_path / 'toy'} --top 3 --seeds 5"
    assert ask.startswith("Not confirmed")
    assert claims.startswith("Claims: ")


def test_the_less_the_better_where_the_objective_says_so(tmp_path: Path) -> None:
    objectives = [{"metric": "success_once", "mode": "min"}]
    best, _, worst, *_ = told(read(tmp_path, log(objectives=objectives)))
    assert "of 3 points alpha=0 has the best" in best
    assert worst.endswith("excludes 0.")


def test_the_claims_are_counted_and_linked(tmp_path: Path) -> None:
    s = read(tmp_path, log())
    found = judged([s], SAY)
    last = section([s], found, SAY).blocks[-1]
    assert isinstance(last, Text)
    assert last.to == "claims"
    counts = [found.count(w) for w in ("supported", "refuted", "undecided")]
    assert last.text == "Claims: {} supported, {} refuted, {} undecided.".format(*counts)
    assert sum(counts) == len(found.shown) > 5


def test_a_confirmed_value_replaces_the_command(tmp_path: Path) -> None:
    write(tmp_path / "toy", iter(log()))
    confirms = {"folder": "toy", "digest": "p", "points": ["0001", "0002"]}
    write(tmp_path / "toy" / "confirm", iter(log({**RATES, 0.1: 0.5, 0.2: 0.5}, seeds=(5, 6, 7), confirms=confirms)))
    found = told(load(tmp_path / "toy"))
    assert "(n = 3)." in only(found, "On fresh seeds its success_once is 0.")
    assert not [t for t in found if "offrl-ray confirm" in t]


def test_what_is_not_complete_is_told_in_words_and_only_then(tmp_path: Path) -> None:
    def lost(point: Record, seed: int) -> Run:
        return Run(0.5, stopped=0.5 if point["algo.alpha"] == 0.2 else None)

    records = list(sweep(lost, AXES, seeds=(0, 1, 2)))
    found = told(read(tmp_path, [r for r in records if r.get("trial") != "0001" or r["kind"] != "end"]))
    assert only(found, "diverged") == "toy: of 3 points 1 diverged, 1 not finished."
    assert not [t for t in told(read(tmp_path / "b", log())) if "diverged" in t]


def test_no_winner_without_a_value(tmp_path: Path) -> None:
    records = [r for r in log() if r["kind"] in ("plan", "session")]
    found = told(read(tmp_path, records))
    assert "there is no winner" in found[0]
    assert only(found, "not started") == "toy: of 3 points 3 not started."


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_it_speaks_chinese_all_through(tmp_path: Path, seeds: tuple[int, ...]) -> None:
    found = told(read(tmp_path, log(seeds=seeds)), "zh")
    assert [t for t in found if not any("\u4e00" <= c <= "\u9fff" for c in t)] == [found[4]]  # the command


def test_the_winners_of_several_sweeps_stand_side_by_side_the_best_first(tmp_path: Path) -> None:
    weak = load(write(tmp_path / "weak", iter(log({0.0: 0.02, 0.1: 0.1, 0.2: 0.3}))))
    strong = load(write(tmp_path / "strong", iter(log())))
    blocks = section([weak, strong], judged([weak, strong], SAY), SAY).blocks
    (winners,) = (b for b in blocks if isinstance(b, Table))
    assert [row[0] for row in winners.rows] == ["strong", "weak"]
    assert winners.rows[1][2] == "alpha=0.2"
    assert not [b for b in section([weak], judged([weak], SAY), SAY).blocks if isinstance(b, Table)]
