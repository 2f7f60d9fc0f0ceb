"""From a sweep script's declaration to a finished folder."""

import argparse
import os
import platform
import re
import secrets
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import filelock
import platformdirs

from offrl_ray import records, run
from offrl_ray.collect import collect
from offrl_ray.config import parse_assignments
from offrl_ray.distributed import session
from offrl_ray.envs.experts import EXPERTS
from offrl_ray.errors import UsageError
from offrl_ray.sweep.ledger import Ledger, place_problems
from offrl_ray.sweep.plan import Demos, Plan, Preset, Sweep, plan, plan_record

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
PACKAGES = ("offrl-ray", "ray", "torch", "mani_skill", "optuna", "numpy", "h5py")


def main(sweep: Sweep, argv: list[str] | None = None) -> int:
    """Run a sweep script. Exit code 0: every point ended; 1: some did not; 2: bad input, nothing was started."""
    args = _parser(sweep).parse_args(argv)
    try:
        return _main(sweep, args)
    except UsageError as e:
        print(e.report(), file=sys.stderr)
        return 2


def _parser(sweep: Sweep) -> argparse.ArgumentParser:
    presets = "\n".join(f"  {name:8} {p.about}" for name, p in sweep.presets.items())
    axes = "\n".join(f"  {k} in {', '.join(map(str, v))}" for k, v in sweep.axes.items())
    parser = argparse.ArgumentParser(
        description=f"{sweep.question}\n\naxes:\n{axes}\n\npresets:\n{presets}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"`offrl-ray describe {sweep.variant}` lists every key that --set takes.",
    )
    parser.add_argument("--preset", default="quick", help="size of the sweep (default: quick)")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="results go to OUT/NAME (default: runs)")
    parser.add_argument("--name", help=f"default: {sweep.name}-PRESET")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a setting of all points, or an axis: K=A,B",
    )
    parser.add_argument(
        "--address", choices=["auto", "local"], default="local", help="Ray to use (default: a local one)"
    )
    parser.add_argument("--dry-run", action="store_true", help="show the points and stop")
    return parser


def _main(sweep: Sweep, args: argparse.Namespace) -> int:
    name = args.name or f"{sweep.name}-{args.preset}"
    folder = (args.out / name).absolute()
    assignments, problems = parse_assignments(args.set)
    if not NAME.fullmatch(name):
        problems.append(f"--name must match {NAME.pattern}, but got {name!r}")
    else:
        problems += place_problems(folder)
    files = _files(sweep, args.preset, assignments)
    given = "data.files" in assignments
    if not given and args.preset in sweep.presets:
        problems += _demo_problems(sweep.presets[args.preset].demos, assignments)
    try:
        grid = plan(sweep, args.preset, assignments, files)
    except UsageError as e:
        problems += e.problems
    if problems:
        flat = {"algo.name": sweep.variant, **assignments, "data.files": files}
        raise UsageError(problems + (run.data_problems(flat) if given else []))
    preset = sweep.presets[args.preset]
    print(_describe(sweep, preset, grid))
    if args.dry_run:
        return 0
    if not given:
        demonstrations(preset.demos)
    data, grid = _load(grid)
    Ledger(folder).check(grid.digest, data.files)
    with _only_driver(folder):
        return _sweep(sweep, args, preset, grid, data, folder)


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


def _describe(sweep: Sweep, preset: Preset, grid: Plan) -> str:
    first = grid.points[0].cfg
    lines = [sweep.question, ""]
    lines += [f"  {p.trial}" for p in grid.points]
    merged = f" ({grid.merged} more were the same run as one of these)" if grid.merged else ""
    r = preset.resources
    return "\n".join(
        [
            *lines,
            f"{len(grid.points)} points{merged} x seeds {', '.join(map(str, first.train.seeds))}, "
            f"{first.train.steps} updates of {first.train.batch_size} chunks, {first.eval.episodes} episodes per seed "
            f"every {first.eval.every} updates and at the end",
            f"per trial {r.cpus_per_trial:g} CPU, {r.gpus_per_trial:g} GPU; {r.evaluators} evaluation actors of "
            f"{r.cpus_per_evaluator:g} CPU, {r.gpus_per_evaluator:g} GPU; data {', '.join(first.data.files)}",
        ]
    )


def demonstrations(demos: Demos) -> Path:
    """The file in the user's cache; it is collected if it is not there yet."""
    path = _place(demos)
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{path}.lock"):
        if path.exists():
            return path
        print(f"collecting {demos.episodes} demonstrations of {demos.env_id} into {path}, once")
        workers = os.cpu_count() if demos.env_id in EXPERTS else None
        collect(demos.env_id, demos.episodes, demos.noise, demos.seed, path, workers=workers, progress=_say)
    return path


def _say(line: str) -> None:
    print(line, flush=True)


def _load(grid: Plan) -> tuple[run.Loaded, Plan]:
    """Read and check all data; the plan comes back with its environments named."""
    index: dict[Any, int] = {}
    data: list[run.Data] = []
    points = []
    for p in grid.points:
        key = (p.cfg.data, p.cfg.env)
        if key in index:
            run.check_network(p.cfg, data[index[key]].spec)
        else:
            index[key] = len(data)
            data.append(run.load_data(p.cfg))
        points.append(p._replace(cfg=run.in_env(p.cfg, data[index[key]].env_id)))
    return run.Loaded(data, [index[p.cfg.data, p.cfg.env] for p in grid.points]), grid._replace(points=points)


class _only_driver:
    """One driver per folder, for as long as it lives."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / ".lock"
        self._lock = filelock.FileLock(self._path)

    def __enter__(self) -> None:
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            raise UsageError(
                [f"{self._path.parent} is being written by another driver; wait for it or use --name"]
            ) from None

    def __exit__(self, *exc: object) -> None:
        self._lock.release()


def _sweep(sweep: Sweep, args: argparse.Namespace, preset: Preset, grid: Plan, data: run.Loaded, folder: Path) -> int:
    ledger = Ledger(folder)
    todo = [i for i, p in enumerate(grid.points) if ledger.is_open(p.trial)]
    if ledger.plan and todo:
        print(f"{folder}: going on with the {len(todo)} of {len(grid.points)} points that have not ended")
    if todo:
        with records.Writer(folder) as writer:
            if ledger.plan is None:
                versions = {p: version(p) for p in PACKAGES} | {"python": platform.python_version()}
                writer.write(**plan_record(sweep, args.preset, grid, data.files, versions))
            namespace = f"offrl-{grid.digest}-{secrets.token_hex(4)}"
            with session.ray_session(args.address, namespace):
                # imports Ray, which reads its settings then; and --help and bad input answer without it
                from offrl_ray.distributed.fit import fit

                fit(preset.resources, grid, data, todo, writer, ledger, namespace, _say)
    after = Ledger(folder)
    left = [p.trial for p in grid.points if after.is_open(p.trial)]
    print(f"{len(grid.points) - len(left)} of {len(grid.points)} points have ended")
    print(f"records: {folder / records.FILE}")
    if left:
        print(f"the same command goes on with {', '.join(left)}", file=sys.stderr)
    return 1 if left else 0
