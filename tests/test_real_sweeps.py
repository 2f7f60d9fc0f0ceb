"""The sweeps whose records are in the repository still say what LOG.md says of them."""

from pathlib import Path

import pytest

from results_analysis import report
from results_analysis.arms import Pool
from results_analysis.findings import FINDINGS
from results_analysis.load import load
from results_analysis.measures import values
from results_analysis.verdicts import judge
from results_analysis.words import speaker
from tests.conftest import REPOSITORY

FOLDER = REPOSITORY / "results_analysis" / "sweeps"
SWEEPS = [
    (["cpql", "cpql_arms"], {"refuted": "C1 C3 C4 C11", "undecided": "C2 C5 C6 C12"}),
    (["sac", "gaussian_bc", "flow_bc"], {"supported": "S7", "refuted": "S2 S3 S5 S9", "undecided": "S1"}),
    (["cql_dqn"], {"refuted": "Q1 Q2"}),
]


def paths(names: list[str]) -> list[Path]:
    return [FOLDER / f"{n}.jsonl.gz" for n in names]


@pytest.mark.parametrize(("names", "expected"), SWEEPS)
def test_the_verdicts_are_those_of_the_log(names: list[str], expected: dict[str, str]) -> None:
    sweeps = [load(p) for p in paths(names)]
    assert [s.problems for s in sweeps] == [[] for _ in sweeps]
    assert {t.status for s in sweeps for t in s.trials} == {"completed"}
    found: dict[str, list[str]] = {}
    for v in judge(FINDINGS, Pool(sweeps), speaker("en")):
        if v.n:
            found.setdefault(v.verdict, []).append(v.claim.id)
    assert {word: " ".join(ids) for word, ids in found.items()} == expected


@pytest.mark.parametrize(("names", "expected"), SWEEPS)
def test_each_has_its_report(names: list[str], expected: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    assert report.main([*map(str, paths(names)), "--out", str(out)]) == 0
    page = out.read_text(encoding="utf-8")
    for word, ids in expected.items():
        assert all(f"{i} {word}" in page for i in ids.split())


def test_the_long_chain_at_a_heavy_q_term_fails_while_q_promises_much() -> None:
    trials = {t.name.partition("-")[2]: t for t in load(FOLDER / "cpql.jsonl.gz").trials}
    whole, last = (trials[f"alpha_5-q_grad_mode_{m}"] for m in ("whole_grad", "last_5"))
    assert set(values(whole, "success_once").values()) == {0.0}
    assert min(values(last, "success_once").values()) > 0.6
    assert min(values(whole, "q_gap").values()) > 3 * max(values(last, "q_gap").values())
