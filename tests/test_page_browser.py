"""The report in a real browser, from disk, without network."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from results_analysis.report import main
from tests.browser import Browser, find
from tests.synthetic import sweep, write
from tests.test_report import AXES, EVIL, POINTS, blown

PROGRAM = find()
NAME = "<img src=x onerror=alert(1)>" + "x" * 150
SEEDS = range(11)
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="needs Chromium: apt-get install chromium")
CELL = "document.querySelector('[data-cell=\"0/0002\"]')"
CARD = "document.getElementById('card')"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of a sweep with stopped seeds, wide enough to overflow, whose folder's name is an attack."""
    wide = {"algo.q_grad_mode": [*AXES["algo.q_grad_mode"], *(f"a_mode_with_a_long_name_{k}" for k in range(8))]}
    folder = tmp_path_factory.mktemp("report") / NAME
    log = sweep(blown, AXES | wide, points=POINTS, reports=20, seeds=SEEDS, name=EVIL)
    write(folder, iter([*log, {"kind": "note", "trial": "0002", "text": EVIL}]))
    found = {lang: folder / f"{lang}.html" for lang in ("en", "zh")}
    for lang, path in found.items():
        assert main([str(folder), "--lang", lang, "--out", str(path)]) == 0
    return found


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert PROGRAM
    browser = Browser(PROGRAM, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def browser(shared: Browser) -> Iterator[Browser]:
    """Whatever a test does, the page has nothing to complain of, and asks nothing of the network."""
    shared.complaints.clear()
    yield shared
    shared.run("0")  # what it had to say has been heard
    assert shared.complaints == []


def centre(browser: Browser, element: str) -> tuple[float, float]:
    browser.run(f"{element}.scrollIntoView({{behavior: 'instant', block: 'center'}})")
    x, y = browser.run(f"(r => [r.x + r.width / 2, r.y + r.height / 2])({element}.getBoundingClientRect())")
    return x, y


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("dark", [False, True])
def test_body_never_scrolls_sideways(browser: Browser, pages: Any, lang: str, width: int, dark: bool) -> None:
    browser.open(pages[lang], width, dark=dark)
    assert browser.run("[document.documentElement.scrollWidth, document.body.scrollWidth]") == [width, width]
    assert browser.run("[...document.querySelectorAll('.map')].some(m => m.scrollWidth > m.parentElement.clientWidth)")
    background = browser.run("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(22, 24, 28)" if dark else "rgb(255, 255, 255)")


@pytest.mark.parametrize(("lang", "word"), [("en", "partly diverged"), ("zh", "部分发散")])
def test_pointing_at_a_cell_shows_its_curves(browser: Browser, pages: Any, lang: str, word: str) -> None:
    browser.open(pages[lang], 1280)
    assert browser.run(f"{CARD}.hidden")
    browser.mouse("mouseMoved", *centre(browser, CELL))
    assert not browser.run(f"{CARD}.hidden")
    assert word in browser.run(f"{CARD}.textContent")
    assert browser.run(f"{CARD}.querySelectorAll('svg polyline.seed').length") == 2 * len(SEEDS)  # success and Q
    assert browser.run(f"{CARD}.querySelectorAll('svg path.stop').length") == 4  # two stopped seeds in each
    assert browser.run(f"{CELL}.getAttribute('aria-expanded')") == "true"
    card = browser.run(f"(r => [r.left, r.top, r.right, r.bottom])({CARD}.getBoundingClientRect())")
    assert min(card) >= 0
    assert card[2] <= 1280
    assert card[3] <= 900
    browser.key("Escape")
    assert browser.run(f"{CARD}.hidden")


def test_a_tap_shows_the_cell_and_another_hides_it(browser: Browser, pages: Any) -> None:
    browser.open(pages["en"], 400)
    browser.tap(*centre(browser, CELL))
    assert not browser.run(f"{CARD}.hidden")
    assert browser.run(f"{CARD}.getBoundingClientRect().right") <= 400
    browser.tap(200, 5)
    assert browser.run(f"{CARD}.hidden")


def test_keys_alone_reach_a_cell_and_leave_it(browser: Browser, pages: Any) -> None:
    browser.open(pages["en"], 1280)
    browser.key("Tab")
    assert browser.run("document.activeElement.className") == "skip"
    browser.run("document.querySelector('[data-cell]').focus()")
    assert browser.run("document.activeElement.dataset.cell") == "0/0000"
    assert not browser.run(f"{CARD}.hidden")
    assert browser.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    browser.key("Tab")
    assert browser.run("document.activeElement.dataset.cell") == "0/0001"
    assert "single_step" in browser.run(f"{CARD}.querySelector('h4').textContent")
    browser.run("document.querySelector('#card .close').click()")
    assert browser.run(f"{CARD}.hidden")


def test_names_are_text_and_run_nothing(browser: Browser, pages: Any) -> None:
    browser.open(pages["en"], 1280)
    assert NAME in browser.run("document.querySelector('h1').textContent")
    browser.run(f"{CELL}.click()")
    assert "<script>alert(1)</script>" in browser.run(f"{CARD}.textContent")
    assert browser.run(f"{CARD}.querySelectorAll('img, script').length") == 0
    assert browser.run("[...document.images].every(i => i.src.startsWith('data:') && i.naturalWidth > 0)")


def test_policy_blocks_any_other_script_and_address(browser: Browser, pages: Any) -> None:
    browser.open(pages["en"], 400)
    made = "const s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.body.append(s)"
    browser.run(made)
    browser.run("fetch('http://127.0.0.1:9/').catch(() => 0)")
    assert browser.run("window.ran === undefined")
    assert any("Content Security Policy" in c for c in browser.complaints)
    assert not any(c.startswith("network") for c in browser.complaints)
    browser.complaints.clear()


def test_columns_of_numbers_are_sorted_as_numbers(browser: Browser, pages: Any) -> None:
    browser.open(pages["en"], 1280)
    table = "[...document.querySelectorAll('table.sortable')].find(t => t.caption.textContent.includes('and why'))"
    cells = f"[...{table}.tBodies[0].rows].map(r => Number(r.cells[1].textContent))"
    assert browser.run(cells) == [*SEEDS, 0, 1]
    click = f"{table}.tHead.rows[0].cells[1].querySelector('button').click()"
    browser.run(click)
    assert browser.run(cells) == sorted([*SEEDS, 0, 1], reverse=True)
    browser.run(click)
    assert browser.run(cells) == sorted([*SEEDS, 0, 1])
    assert browser.run(f"{table}.tHead.rows[0].cells[1].ariaSort") == "ascending"


CONTRAST = """(() => {
  const light = c => { const p = c.match(/[\\d.]+/g).map(Number); if (p.length > 3 && p[3] < 1) return null;
    const [r, g, b] = p.map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b; };
  const behind = e => { for (; e; e = e.parentElement) { const l = light(getComputedStyle(e).backgroundColor);
    if (l !== null) return l; } return 1; };
  const texts = [...document.body.querySelectorAll('*')].filter(e => e.offsetParent
    && [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()));
  return Math.min(...texts.map(e => {
    const [a, b] = [light(getComputedStyle(e).color), behind(e)].sort((x, y) => y - x);
    return (a + .05) / (b + .05); })); })()"""


@pytest.mark.parametrize("dark", [False, True])
def test_every_text_has_the_contrast_that_wcag_aa_asks(browser: Browser, pages: Any, dark: bool) -> None:
    browser.open(pages["en"], 1280, dark=dark)
    browser.run("for (const d of document.querySelectorAll('details')) d.open = true")
    browser.run(f"{CELL}.click()")
    assert browser.run(CONTRAST) >= 4.5


def test_folds_open_by_keys_and_are_open_on_paper(browser: Browser, pages: Any) -> None:
    browser.open(pages["en"], 1280)
    fold = "document.querySelector('details')"
    count = "document.querySelectorAll('details[open]').length"
    assert browser.run(count) == 0
    browser.run(f"{fold}.querySelector('summary').focus()")
    assert browser.run("document.activeElement.tagName") == "SUMMARY"
    browser.key("Enter")
    assert browser.run(count) == 1
    browser.run("window.dispatchEvent(new Event('beforeprint'))")
    assert browser.run(count) == browser.run("document.querySelectorAll('details').length") > 1
    browser.run("window.dispatchEvent(new Event('afterprint'))")
    assert browser.run(count) == 1


def test_pictures_are_never_cut(browser: Browser, pages: Any) -> None:
    browser.open(pages["en"], 1280)
    assert browser.run("[...document.querySelectorAll('figure .scroll')].every(b => b.scrollHeight <= b.clientHeight)")
    assert browser.run("document.querySelectorAll('figure .scroll').length") > 4
    assert browser.run("Math.max(...[...document.images].map(i => i.height))") > 400
