"""The story's sections in both languages: every text that they say has a Chinese one with the same places."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from string import Formatter

import pytest

from results_analysis import advice, answer, behind, confirmation, diagnosis, header, q_traps, q_truth, signs
from results_analysis.blocks import Block, Figure, Table, Text
from results_analysis.words import Lang, speaker
from tests.story import read
from tests.synthetic import Record, Run, sweep

MODULES = (answer, header, q_truth, q_traps, diagnosis, behind, confirmation)
CHINESE = json.loads((Path(header.__file__).parent / "zh" / "story.json").read_text(encoding="utf-8"))
TABLES = {
    *header.STATES,
    *q_truth.COLUMNS,
    *diagnosis.KINDS.values(),
    *advice.FAILURES.values(),
    *(t.text for t in q_traps.TRAPS),
    *(r.meaning for r in advice.RULES.values()),
    *(text for s in signs.SIGNS.values() for text in (s.meaning, s.numbers)),
    *("unfinished", "training", "evaluation"),
    *("growing", "shrinking", "undecided", "one seed: undecided", "not finite"),
}


def constants(node: ast.AST) -> Iterator[str]:
    """The strings that an expression may become; those that a condition compares with are none."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from (s for branch in (node.body, node.orelse) for s in constants(branch))
    elif isinstance(node, ast.List):
        yield from (s for e in node.elts for s in constants(e))


def said(path: Path) -> Iterator[str]:
    """What a module says: say("...") itself, and what it first calls `what` or `columns`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "say":
            yield from constants(node.args[0])
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in ("what", "columns", "span"):
            yield from constants(node.value)


SAID = TABLES | {s for m in MODULES for s in said(Path(m.__file__))}


def places(text: str) -> list[tuple[str, str]]:
    return sorted((name, spec or "") for _, name, spec, _ in Formatter().parse(text) if name)


def test_every_text_is_translated_and_no_other() -> None:
    assert len(SAID) > 100
    assert SAID - CHINESE.keys() == set()
    assert CHINESE.keys() - SAID == set()


@pytest.mark.parametrize("text", sorted(CHINESE))
def test_a_translation_is_chinese_and_has_the_same_places_and_settings(text: str) -> None:
    chinese = CHINESE[text]
    assert places(chinese) == places(text)
    names = r"[a-z]+[._][a-z_.]+|--[a-z-]+|offrl-ray [a-z]+"
    assert sorted(re.findall(names, chinese)) == sorted(re.findall(names, text))
    assert re.search("[\u4e00-\u9fff]", chinese) or not re.search("[a-z]{3}", re.sub(r"q_\w+|{.*?}|SHA", "", text))


def shown(block: Block) -> Iterator[str]:
    if isinstance(block, Text):
        yield block.text
    elif isinstance(block, Table | Figure):
        yield block.caption
    if isinstance(block, Table):
        yield from (str(c) for c in [*block.columns, *(v for row in block.rows for v in row if isinstance(v, str))])


def lost(point: Record, seed: int) -> Run:
    bounds = {"q_mean": lambda t: t, "q_bound_low": lambda t: 0.0, "q_bound_high": lambda t: 0.1}
    return Run(0.5, bounds, stopped=0.5 if seed else None)


@pytest.mark.filterwarnings("error")  # a picture with signs that its font lacks
@pytest.mark.parametrize("module", [header, q_truth, diagnosis, confirmation])
@pytest.mark.parametrize("lang", ["en", "zh"])
def test_a_section_has_its_language_all_through(tmp_path: Path, module: object, lang: Lang) -> None:
    s = read(tmp_path, sweep(lost, {"algo.alpha": [0.1]}, seeds=(0, 1)))
    found = module.section([s], speaker(lang))  # type: ignore[attr-defined]
    text = " ".join([found.title, *(t for b in found.blocks for t in shown(b))])
    assert "{" not in text
    assert bool(re.search("[\u4e00-\u9fff]", text)) == (lang == "zh")
