"""From a sweep script's declaration to a finished folder."""

import argparse
import dataclasses
import os
from pathlib import Path
from typing import Any

import filelock
import platformdirs

from offrl_ray import probe, run
from offrl_ray.collect import collect
from offrl_ray.config import parse_assignments
from offrl_ray.distributed.drive import drive, say, versions
from offrl_ray.envs.experts import EXPERTS
from offrl_ray.errors import UsageError
from offrl_ray.exits import exit_code
from offrl_ray.sweep import space
from offrl_ray.sweep.ledger import NAME, check, place_problems
from offrl_ray.sweep.plan import Demos, Keep, Plan, Resources, Sweep, plan, plan_record
from offrl_ray.sweep.prior import priors
from offrl_ray.sweep.rungs import RungSpec
from offrl_ray.sweep.spec import SAMPLERS, Objective, SearchSpec
from offrl_ray.sweep.state import State


def main(sweep: Sweep, argv: list[str] | None = None) -> int:
    """Run a sweep script; its exit code is `drive`'s, or 2 for bad input, before anything was started."""
    args = _parser(sweep).parse_args(argv)
    return exit_code(lambda: _main(sweep, args))


def _parser(sweep: Sweep) -> argparse.ArgumentParser:
    presets = "\n".join(f"  {name:8} {p.about}" for name, p in sweep.presets.items())
    axes = "\n".join(
        f"  {k} in {v if isinstance(v, space.Domain) else ', '.join(map(str, v))}" for k, v in sweep.axes.items()
    )
    parser = argparse.ArgumentParser(
        description=f"{sweep.question}\n\naxes:\n{axes}\n\npresets:\n{presets}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"`offrl-ray describe {sweep.variant}` lists every key that --set and --vary take. The same command on "
        "an unfinished folder goes on, on a finished one says so; `offrl-ray status FOLDER` looks at either.",
    )
    add = parser.add_argument
    add("--preset", default="quick", help="size of the sweep (default: quick)")
    add("--out", type=Path, default=Path("runs"), help="results go to OUT/NAME (default: runs)")
    add("--name", help=f"default: {sweep.name}-PRESET")
    more: dict[str, Any] = {"action": "append", "default": []}
    add("--set", **more, metavar="KEY=VALUE", help="change a setting of all points, or make it an axis: K=A,B")
    add("--address", choices=["auto", "local"], default="local", help="Ray to use (default: a local one)")
    add("--dry-run", action="store_true", help="show the points, their time and their disk, and stop")
    add("--fresh", action="store_true", help="do not take over results of other sweeps in OUT that are the same run")
    group = parser.add_argument_group("searching inside every cell of the grid")
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
    add("--warm-start", type=Path, metavar="FOLDER", help="tell the search what another sweep's points gave")
    group = parser.add_argument_group("stopping and keeping")
    add = group.add_argument
    add("--rungs", metavar="GRACE[:ETA]", help="at GRACE, GRACE*ETA, ... updates stop all but the best 1/ETA (ASHA)")
    add("--keep-top", type=int, metavar="K", help="of ended points keep the checkpoints of the K best (default: all)")
    add("--keep-bytes", type=_size, metavar="SIZE", help="and of these no more than 500M, 20G, ...")
    add("--hang-after", type=float, metavar="SECONDS", help="end what says nothing for so long (default: 1800)")
    return parser


def _size(text: str) -> int:
    units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    return int(float(text.rstrip("KMGTB")) * units.get(text.rstrip("B")[-1:], 1))


def _main(sweep: Sweep, args: argparse.Namespace) -> int:
    name = args.name or f"{sweep.name}-{args.preset}"
    folder = (args.out / name).absolute()
    assignments, problems = parse_assignments(args.set)
    ranges, wrong = _ranges(args.vary)
    problems += wrong
    if not NAME.fullmatch(name):
        problems.append(f"--name must match {NAME.pattern}, but got {name!r}")
    else:
        problems += place_problems(folder)
    files = _files(sweep, args.preset, assignments)
    given = "data.files" in assignments
    if not given and args.preset in sweep.presets:
        problems += _demo_problems(sweep.presets[args.preset].demos, assignments)
    rungs, wrong = _rungs(args.rungs)
    problems += wrong + _limit_problems(args)
    search, wrong = _search(args)
    problems += wrong
    try:
        work = plan(sweep, args.preset, assignments | ranges, files, search)._replace(rungs=rungs)
    except UsageError as e:
        problems += e.problems
    if problems:
        flat = {"algo.name": sweep.variant, **assignments, "data.files": files}
        raise UsageError(problems + (run.data_problems(flat) if given else []))
    preset = sweep.presets[args.preset]
    resources = preset.resources
    if args.hang_after:
        resources = dataclasses.replace(resources, hang_seconds=args.hang_after)
    print(describe(sweep.question, work, resources))
    if args.dry_run and not given and not _place(preset.demos).exists():
        print("time and disk are not known before the demonstrations are collected")
        return 0
    if not given:
        demonstrations(preset.demos)
    loaded, work = load(work)
    if args.dry_run:
        print(cost(work, loaded, resources, args.address))
        return 0
    if problems := probe.room_problems(work, loaded, folder, args.keep_top):
        raise UsageError(problems)
    keep = Keep(top=args.keep_top, bytes=args.keep_bytes)
    check(folder, State.read(folder), work.digest, loaded.files)
    record = plan_record(sweep, args.preset, work, loaded.files, versions(), resources, keep)
    record |= {"fresh": args.fresh, "priors": priors(work, State.read(args.warm_start)) if args.warm_start else []}
    return drive(folder, work, record, loaded, args.address)


def _ranges(items: list[str]) -> tuple[dict[str, Any], list[str]]:
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


def _search(args: argparse.Namespace) -> tuple[SearchSpec | None, list[str]]:
    """None: every value of every axis, and success as the aim."""
    objectives = tuple(Objective.parse(o) for o in args.objective) or (Objective("success_once"),)
    tried = [parse_assignments(text.split(";"), "--try") for text in args.first]
    problems = [p for _, wrong in tried for p in wrong]
    if args.search == "grid" and not args.objective and not tried:
        return None, problems
    first = tuple(point for point, _ in tried)
    return SearchSpec(args.search, args.trials, args.search_seed, objectives, first), problems


def _rungs(text: str | None) -> tuple[RungSpec | None, list[str]]:
    if text is None:
        return None, []
    parts = text.split(":")
    if len(parts) > 2 or not all(p.isdecimal() for p in parts):
        return None, [f"--rungs takes GRACE[:ETA], two whole numbers, but got {text!r}; for example --rungs 1000:3"]
    spec = RungSpec(*map(int, parts))
    if spec.grace < 1 or spec.eta < 2:
        return None, [f"--rungs must have GRACE >= 1 and ETA >= 2, but got {text!r}"]
    return spec, []


def _limit_problems(args: argparse.Namespace) -> list[str]:
    limits = {"--trials": args.trials, "--keep-top": args.keep_top, "--keep-bytes": args.keep_bytes}
    limits |= {"--hang-after": args.hang_after}
    return [f"{k} must be > 0, but got {v}" for k, v in limits.items() if v is not None and v <= 0]


def _files(sweep: Sweep, preset: str, assignments: dict[str, Any]) -> list[Any]:
    given = assignments.get("data.files")
    if given is not None:
        return [
            str(Path(f).resolve()) if isinstance(f, str) else f for f in (given if isinstance(given, list) else [given])
        ]
    demos = sweep.presets[preset].demos if preset in sweep.presets else next(iter(sweep.presets.values())).demos
    return [str(_place(demos))]


def _place(demos: Demos) -> Path:
    return platformdirs.user_cache_path("offrl-ray") / "demos" / demos.file_name


def _demo_problems(demos: Demos, assignments: dict[str, Any]) -> list[str]:
    """Settings that the demonstrations a sweep collects by itself cannot meet."""
    made = {"env.id": demos.env_id, "env.control_mode": demos.control_mode, "env.reward_mode": demos.reward_mode}
    return [
        f"{key} is {assignments[key]!r}, but the demonstrations that this sweep collects have {value!r}; "
        f"give files of your own: --set data.files=FILE.h5"
        for key, value in made.items()
        if assignments.get(key) not in (None, value)
    ]


def describe(question: str, work: Plan, resources: Resources) -> str:
    """A plan in words, every point or searched cell by its name."""
    first = work.cells[0].cfg
    merged = f" ({work.merged} more were the same run as one of these)" if work.merged else ""
    r, what = resources, f"{len(work.points)} points"
    searched = [c for c in work.cells if c.space]
    if work.search and searched:
        names = ", ".join(work.domains)
        what = f"{len(searched)} cells x {work.search.trials} points of {work.search.sampler} over {names}"
        what += f" and {len(work.points)} points without a choice" if work.points else ""
    return "\n".join(
        [
            question,
            "",
            *(f"  {', '.join(f'{k}={v}' for k, v in c.axes.items()) or 'all'}" for c in searched),
            *(f"  {p.trial}" for p in work.points),
            f"{what}{merged} x seeds {', '.join(map(str, first.train.seeds))}, "
            f"{first.train.steps} updates of {first.train.batch_size} chunks, {first.eval.episodes} episodes per seed "
            f"every {first.eval.every} updates and at the end",
            f"per trial {r.cpus_per_trial:g} CPU, {r.gpus_per_trial:g} GPU; {r.evaluators} evaluation actors of "
            f"{r.cpus_per_evaluator:g} CPU, {r.gpus_per_evaluator:g} GPU; data {', '.join(first.data.files)}",
        ]
    )


def cost(work: Plan, loaded: run.Loaded, resources: Resources, address: str) -> str:
    """Time and disk of a plan in words, from a few of its updates."""
    slots = int((os.cpu_count() or 1) / resources.cpus_per_trial) if address == "local" else 1
    return probe.report(work, loaded, max(1, slots))


def demonstrations(demos: Demos) -> Path:
    """The file in the user's cache; it is collected if it is not there yet."""
    path = _place(demos)
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{path}.lock"):
        if path.exists():
            return path
        print(f"collecting {demos.episodes} demonstrations of {demos.env_id} into {path}, once")
        workers = os.cpu_count() if demos.env_id in EXPERTS else None
        collect(demos.env_id, demos.episodes, demos.noise, demos.seed, path, workers=workers, progress=say)
    return path


def load(work: Plan) -> tuple[run.Loaded, Plan]:
    """Read and check all data; the plan comes back with its environments named."""
    index: dict[Any, int] = {}
    data: list[run.Data] = []
    env_ids = []
    for cell in work.cells:
        cfg = cell.cfg
        key = (cfg.data, cfg.env)
        if key in index:
            run.check_network(cfg, data[index[key]].spec)
        else:
            index[key] = len(data)
            data.append(run.load_data(cfg))
        env_ids.append(data[index[key]].env_id)
    named = work.in_envs(env_ids)
    before = [index[c.cfg.data, c.cfg.env] for c in work.cells]
    return run.Loaded(data, {(c.cfg.data, c.cfg.env): i for c, i in zip(named.cells, before, strict=True)}), named
