"""From a sweep script's declaration to a finished folder."""

import argparse
import os
from pathlib import Path
from typing import Any

import filelock
import platformdirs

from offrl_ray import probe, run
from offrl_ray.collect import collect
from offrl_ray.config import parse_assignments
from offrl_ray.distributed import options, session
from offrl_ray.distributed.address import LOCAL
from offrl_ray.distributed.drive import drive, fits_here, versions
from offrl_ray.envs.experts import EXPERTS
from offrl_ray.errors import UsageError
from offrl_ray.exits import exit_code
from offrl_ray.sweep.ledger import NAME, check, place_problems
from offrl_ray.sweep.plan import Demos, Keep, Plan, Resources, Sweep, plan, plan_record
from offrl_ray.sweep.prior import priors
from offrl_ray.sweep.state import State
from offrl_ray.terminal import exit_on_end_signals, say


def main(sweep: Sweep, argv: list[str] | None = None) -> int:
    """Run a sweep script; its exit code is `drive`'s, or 2 for bad input, before anything was started."""
    args = options.parser(sweep).parse_args(argv)
    return exit_code(lambda: _main(sweep, args))


def _main(sweep: Sweep, args: argparse.Namespace) -> int:
    name = args.name or f"{sweep.name}-{args.preset}"
    folder = (args.out / name).absolute()
    assignments, problems = parse_assignments(args.set)
    ranges, wrong = options.ranges(args.vary)
    problems += wrong
    if not NAME.fullmatch(name):
        problems.append(f"--name must match {NAME.pattern}, but got {name!r}")
    else:
        problems += place_problems(folder)
    files = _files(sweep, args.preset, assignments)
    given = "data.files" in assignments
    if not given and args.preset in sweep.presets:
        problems += _demo_problems(sweep.presets[args.preset].demos, assignments)
    rungs, wrong = options.rungs(args.rungs)
    problems += wrong + options.limit_problems(args)
    search, wrong = options.search(args)
    problems += wrong
    try:
        work = plan(sweep, args.preset, assignments | ranges, files, search)._replace(rungs=rungs)
    except UsageError as e:
        problems += e.problems
    if problems:
        flat = {"algo.name": sweep.variant, **assignments, "data.files": files}
        raise UsageError(problems + (run.data_problems(flat) if given else []))
    exit_on_end_signals()
    preset = sweep.presets[args.preset]
    resources = options.resources(args, preset.resources)
    say(describe(sweep.question, work, resources))
    if args.dry_run and not given and not _place(preset.demos).exists():
        say("time and disk are not known before the demonstrations are collected")
        return 0
    if not given:
        demonstrations(preset.demos)
    loaded, work = load(work)
    if args.dry_run:
        say(cost(work, loaded, resources, args.address))
        return 0
    if problems := probe.room_problems(work, loaded, folder, args.keep_top):
        raise UsageError(problems)
    keep = Keep(top=args.keep_top, bytes=args.keep_bytes)
    record = plan_record(sweep, args.preset, work, loaded.files, versions(), resources, keep)
    check(folder, State.read(folder), record)
    record |= {"fresh": args.fresh, "priors": priors(work, State.read(args.warm_start)) if args.warm_start else []}
    return drive(folder, work, record, loaded, args.address)


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
            f"{_reserved(r)}; {_count(r)} of "
            f"{r.cpus_per_evaluator:g} CPU, {r.gpus_per_evaluator:g} GPU; data {', '.join(first.data.files)}",
        ]
    )


def _count(r: Resources) -> str:
    each = "per GPU of the cluster" if r.gpus_per_evaluator else "in all"
    return f"one evaluation actor {each}," if r.evaluators is None else f"{r.evaluators} evaluation actors"


def _reserved(r: Resources) -> str:
    if r.pack:
        return f"{'as many trials as is best' if r.pack == 'auto' else f'{r.pack} trials'} side by side"
    return f"per trial {r.cpus_per_trial:g} CPU, {r.gpus_per_trial:g} GPU"


def cost(work: Plan, loaded: run.Loaded, resources: Resources, address: str) -> str:
    """Time, memory and disk of a plan in words, from a few of its updates: here, or on a cluster that is joined."""
    ray = session.locate(address)
    alone = ray.address == LOCAL
    here = probe.device_here(work)
    if here and not resources.pack:
        slots = int((os.cpu_count() or 1) / resources.cpus_per_trial) if alone else 1
        told = probe.report(work, probe.probes(work, loaded), max(1, slots))
        return "\n".join([told, *_refused(work, resources)]) if alone else told
    why = f"train.device is {work.cells[0].cfg.train.device}, and this machine has no GPU"
    if resources.pack or not alone:
        try:
            with session.ray_session(ray, f"offrl-dry-run-{os.getpid()}"):
                from offrl_ray.distributed.pack import pack

                told, found, slots = pack(work, loaded, resources, say)[1:]
            return "\n".join(filter(None, [told, probe.report(work, found, slots)]))
        except UsageError as e:
            if resources.pack:
                raise
            why = e.problems[0]
    return (
        f"time and memory are not known: {why}; --address HOST:PORT measures them on a cluster that has one; "
        f"{probe.disk(work, probe.checkpoint_bytes(work, loaded))}"
    )


def _refused(work: Plan, resources: Resources) -> list[str]:
    """Why this machine cannot run it."""
    try:
        fits_here(resources, [c.cfg for c in work.cells], versions())
    except UsageError as e:
        return [f"this machine cannot run it: {p}" for p in e.problems]
    return []


def demonstrations(demos: Demos) -> Path:
    """The file in the user's cache; it is collected if it is not there yet."""
    path = _place(demos)
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{path}.lock"):
        if path.exists():
            return path
        say(f"collecting {demos.episodes} demonstrations of {demos.env_id} into {path}, once")
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
