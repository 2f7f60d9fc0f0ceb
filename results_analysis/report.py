"""One page about sweeps, finished or still running: what was asked, what came out, how sure it is, what is missing."""

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a script: its own folder's modules are not the top level
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from offrl_ray.errors import UsageError, plain
from results_analysis import answer, claims, confirmation, curves, diagnosis, header, heatmaps, knobs_view, q_truth
from results_analysis.blocks import Section, Text
from results_analysis.grid import find_grids
from results_analysis.heatmap import write_atomic
from results_analysis.load import Sweep, load
from results_analysis.page import Files, render
from results_analysis.words import Lang, Say, speaker

EPILOG = """examples:
  %(prog)s runs/cpql-quick                     writes runs/cpql-quick/report.html, and report_files/ beside it
  %(prog)s runs/sac runs/flow --out both.html  several sweeps on one page, with both_files/
  %(prog)s runs/cube --where lr=0.001          of more than two axes, show those with lr = 0.001
  %(prog)s runs/cpql-quick --lang zh           the page in Chinese

A running sweep is shown as far as it is; run the command again for a newer page.
Exit code 2: bad input, nothing written.
"""


def sections(sweeps: Sequence[Sweep], say: Say, x: str | None, y: str | None, where: Sequence[str]) -> list[Section]:
    """Of the report, in its order."""
    judged = claims.judged(sweeps, say)
    makers: list[Callable[[Sequence[Sweep], Say], Section]] = [
        lambda sweeps, say: answer.section(sweeps, judged, say),
        header.section,
        functools.partial(heatmaps.section, x=x, y=y, where=where),
        functools.partial(curves.section, x=x, y=y, where=where),
        q_truth.section,
        knobs_view.section,
        functools.partial(claims.section, found=judged),
        diagnosis.section,
        confirmation.section,
    ]
    found = []
    for i, make in enumerate(makers, 1):
        section = make(sweeps, say)
        print(f"made part {i} of {len(makers)}: {section.title}", file=sys.stderr)
        found.append(section)
    damaged = [_damage(s, say) for s in sweeps if s.problems]
    return [found[0]._replace(blocks=[*damaged, *found[0].blocks]), *found[1:]]


def _damage(sweep: Sweep, say: Say) -> Text:
    text = say(
        "{folder}: {n} records are damaged or missing and were left out; numbers that rest on them lack them. "
        "The first: {first}",
        **{"folder": sweep.folder, "n": len(sweep.problems), "first": sweep.problems[0]},
    )
    return Text(text, "warning")


def make_page(
    sweeps: Sequence[Sweep],
    folder: str,
    lang: Lang = "en",
    x: str | None = None,
    y: str | None = None,
    where: Sequence[str] = (),
) -> tuple[str, Files]:
    """The page and the files of `folder` beside it. Raises UsageError as `find_grids`."""
    say = speaker(lang)
    title = say("Report: {names}", names=", ".join(s.label for s in sweeps))
    return render(title, sections(sweeps, say, x, y, where), folder, lang, say)


def _load(folders: Sequence[Path], x: str | None, y: str | None, where: Sequence[str], out: Path) -> list[Sweep]:
    """Raises UsageError with the problems of all of them."""
    sweeps, problems = [], []
    for folder in folders:
        try:
            print(f"reading {folder}", file=sys.stderr)
            sweeps.append(load(folder))
            find_grids(sweeps[-1], x, y, where)
        except UsageError as e:
            problems += e.problems
    if out.is_dir():
        problems.append(f"--out {out}: a folder; expected the name of a file, such as {out / 'report.html'}")
    elif not (out.parent.is_dir() or out.parent in folders):
        problems.append(f"--out {out}: its folder does not exist; make it, or name another")
    if problems:
        raise UsageError(problems)
    return sweeps


def _write(out: Path, beside: Path, page: str, files: Files) -> None:
    beside.mkdir(exist_ok=True)
    for name, content in files.items():
        write_atomic(beside / name, content)
    write_atomic(out, page.encode("utf-8", "backslashreplace"))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folders",
        metavar="DIR",
        type=Path,
        nargs="+",
        help="a sweep's folder, running or done, or a copy of its records, *.gz",
    )
    parser.add_argument(
        "--out", metavar="FILE", type=Path, help="default: DIR/report.html, of several or a copy ./report.html"
    )
    parser.add_argument("--lang", choices=("en", "zh"), default="en", help="English or Chinese (default: %(default)s)")
    parser.add_argument("--x", metavar="KEY", help="axis of the heatmaps' columns, such as algo.alpha or alpha")
    parser.add_argument("--y", metavar="KEY", help="axis of their rows")
    parser.add_argument(
        "--where", metavar="KEY=VALUE", action="append", default=[], help="fix another axis (repeatable)"
    )
    args = parser.parse_args(argv)
    alone = len(args.folders) == 1 and args.folders[0].is_dir()
    out = args.out or (args.folders[0] if alone else Path()) / "report.html"
    beside = out.with_name(f"{out.stem}_files")
    try:
        sweeps = _load(args.folders, args.x, args.y, args.where, out)
        page, files = make_page(sweeps, beside.name, args.lang, args.x, args.y, args.where)
    except UsageError as e:
        print(f"report.py: nothing written\n{e}", file=sys.stderr)
        return 2
    for problem in (p for s in sweeps for p in s.problems[:5]):
        print(f"skipped a damaged record: {plain(problem)}", file=sys.stderr)
    try:
        _write(out, beside, page, files)
    except OSError as e:
        print(f"report.py: could not write: {e}", file=sys.stderr)
        return 1
    print(f"wrote {out} and {len(files)} files in {beside}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
