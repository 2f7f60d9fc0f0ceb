"""Commands on a sweep's folder: look, check, and decide what goes on."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offrl_ray.distributed import address
from offrl_ray.errors import UsageError, did_you_mean
from offrl_ray.objects import StoreError
from offrl_ray.store import called, given, local_path
from offrl_ray.terminal import say

if TYPE_CHECKING:
    from offrl_ray.sweep.state import State, Trial


def add_to(commands: Any) -> None:
    """`commands` is what argparse's add_subparsers returns."""

    def add(name: str, command: Any, about: str, more: str = "") -> argparse.ArgumentParser:
        p: argparse.ArgumentParser = commands.add_parser(name, help=about, description=f"{about}. {more}".strip())
        p.add_argument("folder", metavar="DIR", type=given, help="the folder of a sweep or a run, or its URL")
        p.set_defaults(command=command)
        return p

    p = add("status", _status, "where a sweep stands, beside a running driver or without one", STATUS)
    p.add_argument("--watch", action="store_true", help="redraw every 2 seconds until the driver ends")
    p.add_argument("--json", action="store_true", help="print one JSON object, with --watch one a line")
    p = add("fsck", _fsck, "is anything lost? checks the invariants N0 to N8 of the records and checkpoints", FSCK)
    p.add_argument("--quick", action="store_true", help="do not read the checkpoints")
    p.add_argument("--json", action="store_true", help="print one JSON object")
    add("rebuild", _rebuild, "write everything that is derived from the records anew", REBUILD)
    p = add("resume", _resume, "go on with the trials that have not ended", "Does nothing if all have.")
    joining = [p]
    p = add("pull", _pull, "copy a sweep from its URL into an ordinary folder, or bring such a copy up to date", PULL)
    p.add_argument("to", metavar="TO", type=local_path, help="new folder, or one of an earlier pull")
    p.add_argument("--checkpoints", action="store_true", help="the checkpoints, too")
    p = add("stop", _stop, "end the sweep's driver, or one trial", "A stopped trial ends as pruned, its results stay.")
    p.add_argument("trial", metavar="TRIAL", nargs="?", help="default: the driver, which saves and can be resumed")
    p.add_argument("--wait", action="store_true", help="until the driver has saved everything and ended")
    p = add("retry", _retry, "open failed trials again and go on with them", "They continue from their checkpoints.")
    p.add_argument("--failed", action="store_true", required=True, help="those that failed; all others have a result")
    p.add_argument("--reason", metavar="CLASS", help="only of this class, such as oom or infra")
    joining.append(p)
    p = add("extend", _extend, "ask for more points of a search and go on", "A grid has no more points.")
    p.add_argument("--trials", metavar="N", type=int, required=True, help="additional points in every cell")
    joining.append(p)
    p = add("confirm", _confirm, "run the best points again on other seeds, in DIR/confirm", CONFIRM)
    p.add_argument("--top", metavar="N", type=int, default=3, help="how many of the completed trials (default: 3)")
    p.add_argument("--seeds", metavar="N", type=int, default=5, help="training seeds of each (default: 5)")
    p.add_argument("--episodes", metavar="N", type=int, help="of an evaluation, per seed (default: the sweep's)")
    p.add_argument("--metric", metavar="METRIC[:min]", help="what is best (default: the sweep's first objective)")
    p.add_argument("--dry-run", action="store_true", help="show points, seeds and time, and stop")
    joining.append(p)
    for p in joining:
        p.add_argument("--address", type=address.option, default="auto", metavar="RAY", help=address.HELP)
    p = add("export", _export, "write a trial's newest policies as files that load without this package")
    p.usage = "offrl-ray export [-h] DIR (--best | TRIAL) OUT"
    p.add_argument("trial", metavar="TRIAL", nargs="?", help="a trial's name")
    p.add_argument("out", metavar="OUT", type=local_path, help="new folder")
    p.add_argument("--best", action="store_true", help="the best completed trial by the sweep's first objective")


STATUS = "Exits with 0 whatever it finds: `fsck` and the driver judge."
FSCK = (
    "Exits with 0 if all is well, or well so far with trials still open, and with 1 for any violation. "
    "May run beside a driver."
)
REBUILD = (
    "tb/ for tensorboard, optuna.journal for optuna-dashboard, and trials.csv. Reads the records only; "
    "beside a running driver, which has the event files open, tb/ is left as it is."
)
PULL = "Records and what is derived from them: for report.py, heatmap.py and tensorboard, which take no URLs."
CONFIRM = (
    "The best of many values is too high; this is what it is the second time. Training seeds begin above the sweep's, "
    "evaluation seeds at the next multiple of 10,000 above the sweep's and the data's (from 2**31 on if runs act while "
    "they train). The same command goes on where it was; every other command takes DIR/confirm as a sweep's folder."
)


def _state(folder: Path) -> "State":
    """Raises UsageError for a folder without a plan."""
    from offrl_ray import records
    from offrl_ray.sweep.state import State

    try:
        log = records.read(folder).records
    except StoreError:
        raise
    except OSError as e:
        raise UsageError([f"{called(folder)} is no sweep's folder: {records.FILE}: {e.strerror}"]) from None
    if not any(r["kind"] == "plan" for r in log):
        raise UsageError([f"{called(folder)} is no sweep's folder: {records.FILE} holds no plan"])
    return State(log)


def _trial(state: "State", folder: Path, name: str) -> "Trial":
    from offrl_ray.sweep.state import check_names

    check_names([name])
    if name not in state.trials:
        raise UsageError([f"{called(folder)} has no trial {name!r}; {did_you_mean(name, state.trials)}"])
    return state.trials[name]


def _tell(text: str) -> None:
    """What was asked for. A reader that has seen enough, such as `head`, ends the command; `say` would go on."""
    print(text, flush=True)


def _status(args: argparse.Namespace) -> int:
    from offrl_ray.sweep import status

    def read() -> status.Summary:
        running = status.driver_runs(args.folder)
        return status.summary(_state(args.folder), time.time(), running)

    def told(s: status.Summary) -> str:
        return json.dumps(s.json(), allow_nan=False)

    if args.watch:
        if args.json:
            status.follow(read, _tell, told, told)
        elif sys.stdout.isatty():
            status.follow(read, _tell, lambda s: f"\x1b[H\x1b[2J{status.text(s)}", status.text)
        else:
            status.follow(read, _tell, status.line, status.text)
        return 0
    _tell(told(read()) if args.json else status.text(read()))
    return 0


def _fsck(args: argparse.Namespace) -> int:
    from offrl_ray.sweep.fsck import check

    def digest_of(path: Path) -> str:
        from offrl_ray import checkpoint

        return checkpoint.load(path).digest

    try:
        report = check(args.folder, None if args.quick else digest_of)
    except StoreError:
        raise
    except OSError as e:
        raise UsageError([f"{called(args.folder)} is no sweep's folder: {e.filename}: {e.strerror}"]) from None
    if args.json:
        _tell(json.dumps({"clean": not report.violations, "verdict": report.verdict, **report._asdict()}))
    else:
        _tell("\n".join([*report.violations, *(f"note: {n}" for n in report.notes), report.verdict]))
    return 1 if report.violations else 0


def _rebuild(args: argparse.Namespace) -> int:
    _state(args.folder)
    from offrl_ray.sweep.derived import rebuild

    for path in rebuild(args.folder):
        say(f"wrote {path}")
    return 0


def _pull(args: argparse.Namespace) -> int:
    _state(args.folder)
    from offrl_ray.cli.pull import pull

    for path in pull(args.folder, args.to, args.checkpoints):
        say(f"wrote {path}")
    return 0


def _resume(args: argparse.Namespace) -> int:
    _state(args.folder)
    from offrl_ray.distributed.manage import resume

    return resume(args.folder, args.address)


def _stop(args: argparse.Namespace) -> int:
    state = _state(args.folder)
    if args.trial is not None:
        _trial(state, args.folder, args.trial)
    from offrl_ray.distributed.manage import stop

    return stop(args.folder, args.trial, args.wait)


def _retry(args: argparse.Namespace) -> int:
    from offrl_ray.sweep.state import FAILURES

    _state(args.folder)
    if args.reason not in (None, *FAILURES):
        raise UsageError([f"--reason is no class of failures: {args.reason!r}; {did_you_mean(args.reason, FAILURES)}"])
    from offrl_ray.distributed.manage import retry

    return retry(args.folder, args.reason, args.address)


def _extend(args: argparse.Namespace) -> int:
    state = _state(args.folder)
    if args.trials < 1:
        raise UsageError([f"--trials must be >= 1, but got {args.trials}"])
    if not (state.plan or {}).get("search"):
        raise UsageError([f"{args.folder} holds a grid, which has no more points; extend asks a search for more"])
    from offrl_ray.distributed.manage import extend

    return extend(args.folder, args.trials, args.address)


def _confirm(args: argparse.Namespace) -> int:
    _state(args.folder)
    from offrl_ray.distributed.manage import confirm
    from offrl_ray.sweep.confirmation import Ask
    from offrl_ray.sweep.spec import Objective

    objective = Objective.parse(args.metric) if args.metric is not None else None
    ask = Ask(args.top, args.seeds, args.episodes, objective)
    return confirm(args.folder, ask, args.address, args.dry_run)


def _export(args: argparse.Namespace) -> int:
    from offrl_ray.sweep.status import best, objective

    state = _state(args.folder)
    if args.best == (args.trial is not None):
        raise UsageError(["export takes either --best or the name of a TRIAL"])
    trial = best(state) if args.best else _trial(state, args.folder, args.trial)
    if trial is None:
        raise UsageError([f"{args.folder}: no trial has completed, so none is best by {objective(state)}"])
    if trial.same_as is not None:
        trial = _trial(state, args.folder, trial.same_as)
    path = _newest_checkpoint(args.folder, trial)
    from offrl_ray.export import export
    from offrl_ray.records import strict

    metric = objective(state)
    about = {"sweep": (state.plan or {})["name"], "trial": trial.name, "point": trial.point, "status": trial.status}
    export(path, args.out, about | {metric: strict(trial.value(metric))})
    say(f"{trial.name}: {path.name} written to {args.out}")
    return 0


def _newest_checkpoint(folder: Path, trial: "Trial") -> Path:
    """Raises UsageError if the trial has none inside the folder."""
    from offrl_ray import checkpoint
    from offrl_ray.sweep.state import check_names

    check_names([trial.name])
    place = folder / "trials" / trial.name
    steps = checkpoint.steps(place)
    if not steps:
        why = f"its results are those of {trial.cached}" if trial.cached else "it was never saved, or was cleared away"
        raise UsageError([f"trial {trial.name} has no checkpoint in {called(folder)}: {why}"])
    path = checkpoint.path_of(place, steps[-1])
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UsageError([f"{path} leads out of {folder}, to {path.resolve()}; nothing outside is exported"])
    return path
