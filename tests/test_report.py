"""The report as files: what stands on the page, in the tables and in the pictures beside it."""

import ast
import csv
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from offrl_ray.records import FILE
from results_analysis import curves, heatmaps, knobs_view
from results_analysis.blocks import Figure, Fold, Raw, Section, Table, Text, Word
from results_analysis.files import csv_text, latex_text, shown
from results_analysis.load import load
from results_analysis.page import render
from results_analysis.report import main
from results_analysis.stats import Estimate
from results_analysis.tiles import MARKS
from results_analysis.words import speaker
from tests.conftest import REPOSITORY
from tests.synthetic import Record, Run, sweep, write

EN = speaker("en")
AXES = {"algo.alpha": [0.0, 0.05], "algo.q_grad_mode": ["single_step", "last_5"]}
POINTS = [{"algo.alpha": 0.0}, *({"algo.alpha": 0.05, "algo.q_grad_mode": m} for m in AXES["algo.q_grad_mode"])]
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)> $\\frac$ \"'& \ud800\u202e 测试"
VOID = {"meta", "link", "img", "br", "input", "hr"}
CRITIC = {"q_policy_mean": lambda at: 0.08 * at, "q_bound_high": lambda at: 0.1, "critic_loss": lambda at: 1e-3 * at}


class Page(HTMLParser):
    """A page's elements; a tag that is not closed, or closed twice, fails."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.data: dict[str, Any] = {}
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {k: v or "" for k, v in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] == ["script"]:
            if self.elements[-1][1].get("type") == "application/json":
                self.data |= json.loads(data)["cards"]
        elif self._open[-1:] != ["style"]:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def make(point: Record, seed: int) -> Run:
    return Run(0.3 + 10 * point.get("algo.alpha", 0.0), CRITIC)


def blown(point: Record, seed: int) -> Run:
    """At last_5 two of the seeds are stopped, at single_step all."""
    mode = point.get("algo.q_grad_mode")
    stopped = 0.5 if mode == "single_step" or (mode == "last_5" and seed < 2) else None
    return make(point, seed)._replace(stopped=stopped)


def report(folder: Path, *options: str) -> Page:
    assert main([str(folder), *options]) == 0
    return Page((folder / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("a") / "toy", sweep(make, AXES, points=POINTS))


@pytest.fixture(scope="module", params=["en", "zh"])
def page(request: pytest.FixtureRequest, folder: Path) -> Page:
    return report(folder, "--lang", request.param)


def test_page_is_whole_and_needs_nothing_else(page: Page, folder: Path) -> None:
    assert page.all("html") in ([{"lang": "en"}], [{"lang": "zh-Hans"}])
    assert len(page.all("h1")) == 1
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    targets = [a["href"] for a in page.all("a")]
    assert {t[1:] for t in targets if t.startswith("#")} <= set(ids)
    assert len([t for t in targets if t.startswith("#")]) > 8
    beside = [t for t in targets if not t.startswith(("#", "data:"))]
    assert beside
    assert all((folder / t).is_file() for t in beside)
    assert all(a["src"].startswith("data:image/png") for _, a in page.elements if "src" in a)
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "script-src 'sha256-" in policy


def test_page_can_be_read_without_eyes(page: Page) -> None:
    assert all(len(a.get("alt", "")) > 10 for a in page.all("img"))
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(a.get("scope") in ("col", "row") for a in page.all("th"))
    still = [a for a in page.all("div") if a.get("class") == "scroll" and "tabindex" not in a]
    assert len(still) == len([a for a in page.all("table") if a.get("class") == "map"])  # their cells take the focus


def said() -> Iterator[tuple[str, str]]:
    """Where and what: every literal that the analysis says."""
    for path in sorted((REPOSITORY / "results_analysis").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                if name == "say":
                    yield f"{path.name}:{node.lineno}", node.args[0].value


def test_every_text_of_ours_is_translated_with_the_same_places() -> None:
    known: dict[str, str] = {}
    for path in (REPOSITORY / "results_analysis" / "zh").glob("*.json"):
        known |= json.loads(path.read_text(encoding="utf-8"))
    places = lambda text: sorted(set(re.findall(r"{(\w+)", text)))  # noqa: E731
    texts = [*said(), *(("tiles.MARKS", m) for m in (*MARKS, "completed"))]
    assert len(texts) > 50
    assert [f"{at}: {t!r}" for at, t in texts if t not in known] == []
    assert [f"{at}: {t!r}" for at, t in texts if places(t) != places(known[t])] == []


def test_pages_differ_in_words_not_in_numbers(folder: Path) -> None:
    english, chinese = (report(folder, "--lang", lang) for lang in ("en", "zh"))
    assert "Heatmaps" in english.text
    assert "热图" in chinese.text
    numbers = lambda p: [t for t in p.texts if re.fullmatch(r"\[?[-0-9.]+(, [-0-9.]+\])?", t)]  # noqa: E731
    assert numbers(english) == numbers(chinese) != []


def test_cells_show_estimate_interval_and_seeds(folder: Path) -> None:
    page = report(folder)
    maps = [a for a in page.all("table") if a.get("class") == "map"]
    assert len(maps) == 4  # success_once, success_at_end, q_gap, stopped
    (row,) = (r for r in csv.DictReader((folder / "report_files" / "heatmap_toy.csv").open()) if r["trial"] == "0002")
    low, mean, high = (float(row[f"success_once{k}"]) for k in (" low", "", " high"))
    assert [f"{mean:.2f}", f"[{low:.2f}, {high:.2f}]", "n = 5"] == (at := page.texts)[
        (i := at.index(f"{mean:.2f}")) : i + 3
    ]
    assert low < 0.8 < high
    buttons = [a["data-cell"] for a in page.all("button") if "data-cell" in a]
    assert buttons == ["0/0000", "0/0001", "0/0002"] * 4
    assert set(buttons) == set(page.data)
    spans = [a for a in page.all("td") if "colspan" in a]
    assert [a["colspan"] for a in spans] == ["2"] * 4


def test_a_cell_carries_its_curves_thinned(tmp_path: Path) -> None:
    page = report(write(tmp_path / "s", sweep(blown, AXES, points=POINTS, reports=200, seeds=(0, 1, 2))))
    card = page.data["0/0002"]
    success, q = card["curves"]
    assert (success["name"], success["x"]) == ("success_once", [4000, 8000, 12000, 16000, 20000])
    assert 50 < len(q["x"]) <= 60
    assert 10000 in q["x"]  # where seeds 0 and 1 were stopped
    assert [s["stop"] for s in q["seeds"]] == [True, True, False]
    assert [s["y"][-1] for s in q["seeds"]] == [None, None, 0.08]
    assert card["status"] == "partly diverged"
    assert "seed 0: q_bound" in card["why"]
    assert ["seeds that a stop rule ended", "0.67 [0.21, 0.94]"] in card["facts"]


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_what_is_not_complete_is_marked_by_pattern_and_word(tmp_path: Path, lang: Any) -> None:
    def log() -> Iterator[Record]:
        for r in sweep(blown, AXES, points=[*POINTS, *({"algo.alpha": 1.0, "algo.q_grad_mode": m} for m in "ab")]):
            if r["kind"] == "plan":
                r["axes"] = {"algo.alpha": [0.0, 0.05, 1.0], "algo.q_grad_mode": ["single_step", "last_5", "a", "b"]}
            if r.get("trial") == "0003" and r["kind"] == "end":
                r |= {"status": "failed", "reason": "oom"}
            if r.get("trial") != "0004":
                yield r

    page = report(write(tmp_path / "s", log()), "--lang", lang)
    marks = [a["class"] for a in page.all("i") if "legend" not in a]
    for mark in ("diverged", "partly diverged", "failed", "not started", "not planned"):
        assert f"mark {mark.replace(' ', '-')}" in marks
        assert any(speaker(lang)(mark) in text for text in page.texts)
    assert len([a for a in page.all("td") if a.get("class") == "not-planned"]) == 4 * 4


def test_seeds_that_were_stopped_are_in_no_mean(tmp_path: Path) -> None:
    def apart(point: Record, seed: int) -> Run:
        return Run(0.5, {"q_policy_mean": lambda at: 100.0 if seed == 0 else 1.0}, stopped=0.5 if seed == 0 else None)

    log = load(write(tmp_path / "s", sweep(apart, {"algo.alpha": [0.1]}, seeds=(0, 1, 2), reports=10)))
    line = curves.line(log.trials[0], "q_policy_mean", "x")
    assert set(line.mean) == {1.0}
    assert line.steps[-1] == 1000
    assert line.stops == [(500.0, 100.0)]
    assert len(line.seeds) == 3


def test_interval_of_a_curve_is_over_seeds(tmp_path: Path) -> None:
    def apart(point: Record, seed: int) -> Run:
        return Run(0.5, {"q_policy_mean": lambda at: float(seed)})

    line = curves.line(
        load(write(tmp_path / "s", sweep(apart, {"algo.alpha": [0.1]}, seeds=(1, 2, 3)))).trials[0],
        "q_policy_mean",
        "x",
    )
    assert (line.mean[0], round(line.low[0], 4), round(line.high[0], 4)) == (
        2.0,
        -0.4841,
        4.4841,
    )  # t(0.975, 2) = 4.3027


def test_too_many_lines_leave_the_best_the_worst_and_the_stopped(tmp_path: Path) -> None:
    def many(point: Record, seed: int) -> Run:
        return Run(point["algo.alpha"], CRITIC, stopped=0.5 if point["algo.alpha"] == 0.5 else None)

    alphas = [round(0.02 * k, 2) for k in range(51)]
    log = load(
        write(tmp_path / "s", sweep(many, {"algo.alpha": alphas}, seeds=(0, 1), reports=4, evals=2, episodes=200))
    )
    found, note = curves.chosen(log.trials, "success_once", EN)
    values = [t.point["algo.alpha"] for t in found]
    assert len(values) == 4 + 4 + 1
    assert values[0] == 0.0
    assert values[-1] == 1.0
    assert 0.5 in values
    assert "of 51 points these are the 4 best and the 4 worst by success_once, and 1 of the 1" in note


def cube(values: int, tmp_path: Path, **more: Any) -> Path:
    axes = {"train.lr": [10.0**-k for k in range(values)], **AXES}
    return write(tmp_path / "s", sweep(make, axes, seeds=(0,), reports=2, evals=1, episodes=2, **more))


def test_other_axes_get_a_heatmap_per_value_and_are_never_averaged(tmp_path: Path) -> None:
    log = load(cube(3, tmp_path))
    raws = [b for b in heatmaps.section([log], EN).blocks if isinstance(b, Raw)]
    assert [b.table.caption.split(", ")[-1] for b in raws] == ["train.lr = 1.0", "train.lr = 0.1", "train.lr = 0.01"]
    assert [len(b.table.rows) for b in raws] == [4, 4, 4]


def test_too_many_combinations_are_not_shown_but_explained(tmp_path: Path) -> None:
    folder = cube(7, tmp_path)
    page = report(folder)
    assert "--where KEY=VALUE" in page.text
    assert page.data == {}
    assert len(report(folder, "--where", "train.lr=0.001").data) == 4


def test_points_of_a_search_are_told_by_their_median(tmp_path: Path) -> None:
    points = [{"algo.alpha": 0.1, "algo.lr": lr} for lr in (0.1, 0.2, 0.3, 0.4)]

    def tried(point: Record, seed: int) -> Run:
        return Run(point["algo.lr"], CRITIC, stopped=0.5 if point["algo.lr"] == 0.4 else None)

    domain = {"algo.lr": {"kind": "float", "low": 0.1, "high": 0.5, "log": False}}
    log = sweep(tried, {"algo.alpha": [0.1]}, points=points, seeds=(0, 1), episodes=500, domains=domain)
    page = report(write(tmp_path / "s", log))
    first = page.texts.index("median of 3 points")
    assert page.texts[first + 1] == "1 more without"
    assert "partly diverged" in page.texts[first - 4 : first]
    assert next(a["data-cell"] for a in page.all("button") if "data-cell" in a) == "0/0001"


def strange(log: Iterator[Record], change: Callable[[Record], Record | None]) -> Iterator[Record]:
    return (changed for r in log if (changed := change(r)) is not None)


@pytest.mark.filterwarnings("error:constrained_layout not applied")  # a picture whose text leaves no room for it
def test_foreign_text_is_inert_everywhere(tmp_path: Path) -> None:
    def change(r: Record) -> Record:
        if r["kind"] == "plan":
            r |= {"name": EVIL, "question": EVIL, "axes": {"algo.alpha": [EVIL], f"algo.{EVIL}": [EVIL, "b"]}}
            for i, p in enumerate(r["points"]):
                p["point"] = {"algo.alpha": EVIL, f"algo.{EVIL}": (EVIL, "b")[i]}
        if r["kind"] == "end":
            r |= {"reason": EVIL, "status": "failed", "diverged": {"0": EVIL}}
        return r

    log = sweep(lambda p, s: Run(0.5, CRITIC), {"algo.alpha": [0.0, 0.1]}, name=EVIL, seeds=(0, 1), reports=2, evals=1)
    notes = [{"kind": "note", "trial": "0000", "text": EVIL}]
    page = report(write(tmp_path / "s", iter([*strange(log, change), *notes])))
    scripts = page.all("script")
    assert scripts == [{"type": "application/json", "class": "cells"}, {}]
    assert {a["src"][:10] for a in page.all("img")} == {"data:image"}
    assert not [k for _, a in page.elements for k in a if k.startswith("on")]
    assert "<script>alert(1)</script>" in page.text
    assert page.data["0/0000"]["why"].startswith("</script><script>")
    for path in (tmp_path / "s" / "report_files").iterdir():
        assert re.fullmatch(r"[\w.-]+\.(csv|tex|png)", path.name)


def test_damaged_records_are_counted_on_the_page(folder: Path, tmp_path: Path, capsys: Any) -> None:
    lines = (folder / FILE).read_bytes().splitlines(keepends=True)
    lines[20] = lines[20].replace(b'"seed"', b'"sead"')
    (tmp_path / FILE).write_bytes(b"".join(lines)[:-30])
    page = report(tmp_path)
    (warning,) = (t for t in page.texts if "records are damaged" in t)
    assert f"{tmp_path}: 2 records are damaged or missing" in warning
    assert "skipped a damaged record" in capsys.readouterr().err


def _running(r: Record) -> Record | None:
    return None if r["kind"] == "end" or r.get("seed", 0) > 1 or r.get("trial") == "0002" else r


def _nothing(r: Record) -> Record | None:
    return r if r["kind"] in ("plan", "session") else None


def _only_trained(r: Record) -> Record | None:
    return None if r["kind"] in ("eval", "end") else r


@pytest.mark.parametrize(
    ("change", "told"),
    [(_running, "n = 2 of 5"), (_nothing, "not started"), (_only_trained, "unfinished")],
    ids=["running", "nothing yet", "no seed finished"],
)
@pytest.mark.parametrize("lang", ["en", "zh"])
def test_sweeps_that_are_not_done_are_shown_as_far_as_they_are(
    tmp_path: Path, change: Callable[[Record], Record | None], told: str, lang: Any
) -> None:
    page = report(write(tmp_path / "s", strange(sweep(make, AXES, points=POINTS), change)), "--lang", lang)
    if lang == "en":
        assert told in page.texts
    assert len([a for a in page.all("table") if a.get("class") == "map"]) == (3 if change is _nothing else 4)


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    page = report(write(tmp_path / "s", sweep(make, AXES, points=POINTS, seeds=(7,))))
    assert "no interval" in page.texts
    assert "n = 1" in page.texts


def test_variants_without_critic_and_native_rewards(tmp_path: Path) -> None:
    def change(r: Record) -> Record:
        return r | {"env": r["env"] | {"reward_mode": "native"}} if r["kind"] == "eval" else r

    log = sweep(
        lambda p, s: Run(0.5, {"loss": lambda at: at}, q_start=None), AXES, points=POINTS, variant="gaussian_bc"
    )
    page = report(write(tmp_path / "s", strange(log, change)))
    captions = [t for t in page.texts if t.strip() in ("return at the last step", "seeds that a stop rule ended")]
    assert len(captions) == 2
    assert "no Q values were recorded" in page.text


def knobs_of(folder: Path) -> dict[str, Any]:
    """Blocks of the section by name, and its texts."""
    blocks = knobs_view.section([load(folder)], EN).blocks
    texts = [b.text for b in blocks if isinstance(b, Text)]
    return {b.name.removesuffix("_s"): b for b in blocks if isinstance(b, Figure)} | {"texts": " ".join(texts)}


def test_knobs_count_a_stopped_seed_as_the_worst_and_say_so(tmp_path: Path) -> None:
    found = knobs_of(write(tmp_path / "s", sweep(blown, AXES, points=POINTS, seeds=(0, 1, 2), episodes=500)))
    assert "3 of 3 points, 5 stopped seeds among them" in found["texts"]
    assert "at least 30 points, but n = 3" in found["texts"]
    assert set(found) == {"sensitivity", "expected_best", "texts"}
    rows = {(r[0], r[1]): r for r in found["sensitivity"].table.rows}
    _, _, points, stopped, mean, best = rows["alpha", "0.05"]
    assert (points, stopped) == (2, 5)
    assert mean.mean == pytest.approx(best.mean * 0.5 + 0.3 * 0.5, abs=0.05)  # one point is all worst
    assert rows["q_grad_mode", "single_step"][3] == 3
    assert "q_grad_mode: 1" in found["sensitivity"].caption  # inert at alpha = 0
    assert [k for k, _ in found["expected_best"].table.rows] == [1, 2, 3]


def test_importance_of_a_search_names_the_axis_that_matters(tmp_path: Path) -> None:
    points = [{"algo.lr": (i + 1) / 40, "algo.tau": (7 * i % 40 + 1) / 41} for i in range(40)]
    domain = {"kind": "float", "low": 0.0, "high": 1.0, "log": False}
    domains = {"algo.lr": domain, "algo.tau": domain}
    log = sweep(lambda p, s: Run(p["algo.lr"]), {}, points=points, seeds=(0,), reports=1, evals=1, domains=domains)
    found = knobs_of(write(tmp_path / "s", log))
    assert set(found) == {"sensitivity", "importance", "expected_best", "points", "texts"}
    first, _ = found["importance"].table.rows
    assert first[0] == "lr"
    assert first[1] > 0.6
    assert first[3] == 40
    assert len(found["points"].table.rows) == 40
    assert all(f.png.startswith(b"\x89PNG") for f in found.values() if isinstance(f, Figure))


def test_knobs_wait_for_a_point_that_ended(tmp_path: Path) -> None:
    told = knobs_of(write(tmp_path / "s", strange(sweep(make, AXES, points=POINTS), _nothing)))
    assert list(told) == ["texts"]
    assert "no point has ended with a value yet" in told["texts"]


def test_several_sweeps_on_one_page(folder: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "o", sweep(make, {"algo.alpha": [0.1]}, seeds=(0, 1), name="toy"))
    assert main([str(folder), str(other), "--out", str(tmp_path / "both.html")]) == 0
    page = Page((tmp_path / "both.html").read_text(encoding="utf-8"))
    assert set(page.data) == {"0/0000", "0/0001", "0/0002", "1/0000"}
    assert (tmp_path / "both_files" / "heatmap_o.csv").is_file()


def test_bad_folders_are_told_together_and_nothing_is_written(folder: Path, tmp_path: Path, capsys: Any) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / FILE).write_text("hello\n")
    before = sorted(tmp_path.rglob("*"))
    options = ["--out", str(tmp_path / "no" / "x.html"), "--x", "q_grad_mod"]
    assert main([str(folder), str(foreign), str(tmp_path / "none"), *options]) == 2
    err = capsys.readouterr().err
    for part in (
        "foreign: no plan",
        "none: no such folder",
        "did you mean algo.q_grad_mode?",
        "its folder does not exist",
    ):
        assert part in err
    assert sorted(tmp_path.rglob("*")) == before
    assert main([str(folder), "--out", str(foreign)]) == 2


def test_command_as_a_user_types_it(folder: Path) -> None:
    script = REPOSITORY / "results_analysis" / "report.py"
    done = subprocess.run([sys.executable, script, "."], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("wrote report.html and ")
    assert "made part 9 of 9" in done.stderr
    assert not list(folder.rglob(".*"))
    helped = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=True).stdout
    assert "--where lr=0.001" in helped


TABLE = Table(
    "x & y",
    "50 % of_all {x}",
    ["a_b", "rate", "n", "why"],
    [
        ["p", Estimate(0.5, (0.25, 0.75), 3), 3, "#1 ~ ^"],
        ["q", Estimate(2.0, None, 1), None, "a,b"],
        ["r", None, 12345, '"'],
    ],
)


def test_csv_has_the_ends_of_intervals_as_columns() -> None:
    rows = list(csv.reader(io.StringIO(csv_text(TABLE))))
    assert rows == [
        ["a_b", "rate", "rate low", "rate high", "n", "why"],
        ["p", "0.5", "0.25", "0.75", "3", "#1 ~ ^"],
        ["q", "2", "", "", "", "a,b"],
        ["r", "", "", "", "12345", '"'],
    ]


def test_latex_escapes_and_aligns() -> None:
    text = latex_text(TABLE)
    assert "\\caption{50 \\% of\\_all \\{x\\}}" in text
    assert "\\label{tab:x_y}" in text
    assert "\\begin{tabular}{lrrl}" in text
    assert "p & 0.5 [0.25, 0.75] & 3 & \\#1 \\textasciitilde{} \\textasciicircum{} \\\\" in text
    assert 'r & -- & 12345 & " \\\\' in text
    row = text.splitlines().index("\\toprule") + 1
    assert text.splitlines()[row] == "a\\_b & rate & n & why \\\\"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.123456, "0.1235"),
        (12345.6, "12346"),
        (1.5e9, "1.5e+09"),
        (3, "3"),
        (float("inf"), "inf"),
        (float("nan"), "nan"),
    ],
)
def test_numbers_have_four_digits(value: float, text: str) -> None:
    assert shown(value) == text


def test_a_fold_is_opened_by_its_title_and_its_tables_are_files() -> None:
    fold = Fold("a <b> & c", [Text("run --this", "code"), TABLE, Fold("inner", [Text("x")])], "bad")
    html, files = render("T", [Section("k", "K", [fold, Text("more", to="k")])], "f", "en", EN)
    page = Page(html)
    assert [a["class"] for a in page.all("details")] == ["bad", "plain"]
    assert len(page.all("summary")) == 2
    assert {"a <b> & c", "run --this", "inner"} <= set(page.texts)
    assert page.all("pre") == [{"tabindex": "0"}]
    assert sorted(files) == ["x_y.csv", "x_y.tex"]
    assert [a["href"] for a in page.all("a")].count("#k") == 2


def test_a_coloured_word_is_a_plain_one_in_the_files() -> None:
    table = Table("t", "c", ["verdict"], [[Word("refuted", "bad")]])
    html, files = render("T", [Section("k", "K", [table])], "f", "en", EN)
    assert {"class": "bad"} in Page(html).all("strong")
    assert files["t.csv"] == b"verdict\nrefuted\n"
    assert b"\\begin{tabular}{l}" in files["t.tex"]
    assert b"\nrefuted \\\\" in files["t.tex"]


@pytest.mark.parametrize(("rows", "box"), [(40, "scroll"), (41, "scroll long")])
def test_only_a_long_table_scrolls(rows: int, box: str) -> None:
    html, _ = render("T", [Section("k", "K", [Table("t", "c", ["n"], [[i] for i in range(rows)])])], "f", "en", EN)
    assert [a["class"] for a in Page(html).all("div")] == [box]


def test_files_of_the_same_name_do_not_replace_each_other() -> None:
    figure = Figure("t", "a caption", b"png", TABLE)
    blocks = [TABLE._replace(name="t"), TABLE._replace(name="t"), figure, Text("x", "bad")]
    html, files = render("T", [Section("k", "K", blocks)], "f", "en", EN)
    assert sorted(files) == ["t-2.csv", "t-2.tex", "t-3.csv", "t-3.png", "t-3.tex", "t.csv", "t.tex"]
    page = Page(html)
    assert {"class": "bad"} in page.all("p")
    (head, *_), cells = page.all("th"), [a for a in page.all("td") if "data-sort" in a]
    assert head == {"scope": "col"}
    assert [a["data-sort"] for a in cells] == ["0.5", "3", "2", "12345"] * 2
