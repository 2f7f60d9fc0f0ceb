"""The options of a sweep script, and what their words mean."""

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from offrl_ray.config import parse_assignments
from offrl_ray.distributed import address
from offrl_ray.errors import UsageError
from offrl_ray.store import given
from offrl_ray.sweep import space
from offrl_ray.sweep.plan import Resources, Sweep
from offrl_ray.sweep.rungs import RungSpec
from offrl_ray.sweep.spec import SAMPLERS, Objective, SearchSpec


def parser(sweep: Sweep) -> argparse.ArgumentParser:
    presets = "\n".join(f"  {name:8} {p.about}" for name, p in sweep.presets.items())
    axes = "\n".join(
        f"  {k} in {v if isinstance(v, space.Domain) else ', '.join(map(str, v))}" for k, v in sweep.axes.items()
    )
    p = argparse.ArgumentParser(
        description=f"{sweep.question}\n\naxes:\n{axes}\n\npresets:\n{presets}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"`offrl-ray describe {sweep.variant}` lists every key that --set and --vary take. The same command on "
        "an unfinished folder goes on, on a finished one says so; `offrl-ray status FOLDER` looks at either.",
    )
    add = p.add_argument
    add("--preset", default="quick", help="size of the sweep (default: quick)")
    add(
        "--out",
        type=given,
        default=Path("runs"),
        help="results go to OUT/NAME, a folder or a URL such as s3://BUCKET/RUNS (default: runs)",
    )
    add("--name", help=f"default: {sweep.name}-PRESET")
    more: dict[str, Any] = {"action": "append", "default": []}
    add("--set", **more, metavar="KEY=VALUE", help="change a setting of all points, or make it an axis: K=A,B")
    add("--dry-run", action="store_true", help="show the points, their time and their disk, and stop")
    add("--fresh", action="store_true", help="do not take over results of other sweeps in OUT that are the same run")
    group = p.add_argument_group("searching inside every cell of the grid")
    add = group.add_argument
    add(
        "--search", default="grid", help=f"{', '.join(SAMPLERS)} (default: grid, which takes every value of every axis)"
    )
    add("--vary", **more, metavar="KEY=RANGE", help="what to search: LOW:HIGH, LOW:HIGH:log, LOW:HIGH:int, or A,B,C")
    add("--trials", type=int, default=20, help="points per cell (default: 20)")
    add("--try", **more, dest="first", metavar="K=V;K=V", help="a point to try first in every cell")
    add(
        "--objective",
        **more,
        metavar="METRIC[:min]",
        help="success_once, return, q_gap:min, q_excess:min, ... (default: success)",
    )
    add("--search-seed", type=int, default=0)
    add("--warm-start", type=given, metavar="FOLDER", help="tell the search what another sweep's points gave")
    _add_resources(p)
    group = p.add_argument_group("stopping and keeping")
    add = group.add_argument
    add("--rungs", metavar="GRACE[:ETA]", help="at GRACE, GRACE*ETA, ... updates stop all but the best 1/ETA (ASHA)")
    add("--keep-top", type=int, metavar="K", help="of ended points keep the checkpoints of the K best (default: all)")
    add("--keep-bytes", type=_size, metavar="SIZE", help="and of these no more than 500M, 20G, ...")
    add("--hang-after", type=float, metavar="SECONDS", help="end what says nothing for so long (default: 1800)")
    return p


def _add_resources(p: argparse.ArgumentParser) -> None:
    add = p.add_argument_group("where it runs (defaults: the preset's)").add_argument
    add("--address", type=address.option, default="auto", metavar="RAY", help=f"{address.HELP} (default: auto)")
    add("--cpus-per-trial", type=float, metavar="N", help="CPU cores that a trial reserves")
    add("--gpus-per-trial", type=float, metavar="N", help="GPUs that a trial reserves; 0.25: four share one")
    about = "trials side by side on a GPU, or on a node where they use none: N if they fit, or as many as measured best"
    add("--pack", metavar="auto|N", help=f"{about} (default: what the shares allow)")
    add("--evaluators", type=int, metavar="N", help="evaluation actors, in all")
    add("--cpus-per-evaluator", type=float, metavar="N", help="CPU cores that an evaluation actor reserves")
    add("--gpus-per-evaluator", type=float, metavar="N", help="share of a GPU that an evaluation actor reserves")


def _size(text: str) -> int:
    units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    return int(float(text.rstrip("KMGTB")) * units.get(text.rstrip("B")[-1:], 1))


def ranges(items: list[str]) -> tuple[dict[str, Any], list[str]]:
    found, problems = {}, []
    for item in items:
        key, sign, text = item.partition("=")
        try:
            found[key.strip()] = space.parse(text)
        except UsageError as e:
            problems += [f"--vary {item}: {p}" for p in e.problems]
        if not sign:
            problems.append(f"--vary takes KEY=RANGE, but got {item!r}, for example --vary algo.lr=1e-4:1e-2:log")
    return found, problems


def search(args: argparse.Namespace) -> tuple[SearchSpec | None, list[str]]:
    """None: every value of every axis, and success as the aim."""
    objectives = tuple(Objective.parse(o) for o in args.objective) or (Objective("success_once"),)
    tried = [parse_assignments(text.split(";"), "--try") for text in args.first]
    problems = [p for _, wrong in tried for p in wrong]
    if args.search == "grid" and not args.objective and not tried:
        return None, problems
    first = tuple(point for point, _ in tried)
    return SearchSpec(args.search, args.trials, args.search_seed, objectives, first), problems


def rungs(text: str | None) -> tuple[RungSpec | None, list[str]]:
    if text is None:
        return None, []
    parts = text.split(":")
    if len(parts) > 2 or not all(p.isdecimal() for p in parts):
        return None, [f"--rungs takes GRACE[:ETA], two whole numbers, but got {text!r}; for example --rungs 1000:3"]
    spec = RungSpec(*map(int, parts))
    if spec.grace < 1 or spec.eta < 2:
        return None, [f"--rungs must have GRACE >= 1 and ETA >= 2, but got {text!r}"]
    return spec, []


def limit_problems(args: argparse.Namespace) -> list[str]:
    limits = {"--trials": args.trials, "--keep-top": args.keep_top, "--keep-bytes": args.keep_bytes}
    limits |= {
        "--hang-after": args.hang_after,
        "--evaluators": args.evaluators,
        "--cpus-per-trial": args.cpus_per_trial,
    }
    shares = {"--gpus-per-trial": args.gpus_per_trial, "--cpus-per-evaluator": args.cpus_per_evaluator}
    shares |= {"--gpus-per-evaluator": args.gpus_per_evaluator}
    return [
        *(f"{k} must be > 0, but got {v}" for k, v in limits.items() if v is not None and not v > 0),
        *(f"{k} must be >= 0, but got {v}" for k, v in shares.items() if v is not None and not v >= 0),
        *_pack_problems(args),
    ]


def _pack_problems(args: argparse.Namespace) -> Iterator[str]:
    if args.pack is None:
        return
    if args.pack != "auto" and not (args.pack.isdecimal() and int(args.pack) > 0):
        yield f"--pack must be auto or a whole number > 0, but got {args.pack!r}"
    for flag, share in (("--gpus-per-trial", args.gpus_per_trial), ("--cpus-per-trial", args.cpus_per_trial)):
        if share is not None:
            yield f"--pack decides what a trial reserves, but got {flag} {share:g} too; leave one of them out"


def resources(args: argparse.Namespace, preset: Resources) -> Resources:
    """Those of a preset, with what the options change."""
    given = {
        "cpus_per_trial": args.cpus_per_trial,
        "gpus_per_trial": args.gpus_per_trial,
        "evaluators": args.evaluators,
        "cpus_per_evaluator": args.cpus_per_evaluator,
        "gpus_per_evaluator": args.gpus_per_evaluator,
        "hang_seconds": args.hang_after,
        "pack": args.pack,
    }
    return dataclasses.replace(preset, **{k: v for k, v in given.items() if v is not None})
