"""One session of a sweep: own its folder, run what it owes, leave it whole."""

import contextlib
import dataclasses
import os
import platform
import secrets
import socket
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from offrl_ray import checkpoint, records
from offrl_ray.config import RunConfig
from offrl_ray.distributed import feasible, preflight, session
from offrl_ray.distributed.address import LOCAL
from offrl_ray.distributed.draining import draining, handlers_kept
from offrl_ray.exits import DISK_FULL
from offrl_ray.run import Loaded
from offrl_ray.store import called, store
from offrl_ray.sweep import derived, events, requests, reuse
from offrl_ray.sweep.conductor import Conductor
from offrl_ray.sweep.ledger import LOCK, Ledger, Record, safe_trial
from offrl_ray.sweep.plan import Keep, Plan, Resources
from offrl_ray.sweep.retention import Stored, to_drop
from offrl_ray.sweep.status import Progress
from offrl_ray.terminal import say

PACKAGES = ("offrl-ray", "ray", "torch", "mani_skill", "optuna", "numpy", "h5py")


def versions() -> dict[str, str]:
    """What can change a result: packages, Python, and our own sources by their digest."""
    return {p: version(p) for p in PACKAGES} | {"python": platform.python_version(), "code": reuse.code_version()}


def drive(folder: Path, plan: Plan, record: Record, loaded: Loaded, address: str, asked: Sequence[Record] = ()) -> int:
    """Run what the folder still owes of a plan; its `record` begins a new one, and `asked` is recorded before that.

    Results of the sweeps beside it that are results of this one too are copied, unless the plan says fresh. Exit code:
    0 every trial ended and none failed, 1 some failed or are left, 74 the disk is full, 128 plus the signal that
    interrupted it. Raises UsageError, with nothing written, if no Ray can be joined, or one that cannot hold the sweep.
    """
    new = [p for p in (folder, *folder.parents) if not p.exists()]
    with handlers_kept(), Ledger(folder) as ledger:
        try:
            return _drive(ledger, plan, record, loaded, address, asked)
        finally:
            _unmake(folder, new)


def _unmake(folder: Path, new: list[Path]) -> None:
    """Remove the folders that were made for a sweep that has written nothing. Only for the holder of its lock."""
    if new and not (folder / records.FILE).exists():
        (folder / LOCK).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            for path in new:
                path.rmdir()


def _drive(ledger: Ledger, plan: Plan, record: Record, loaded: Loaded, address: str, asked: Sequence[Record]) -> int:
    folder, place = ledger.folder, called(ledger.folder)
    ledger.check(record | {"digest": plan.digest, "data": loaded.files})
    requests.clear(folder)
    if ledger.problems:
        say(f"{len(ledger.problems)} damaged lines are passed over, their work is done again: {ledger.problems[0]}")
    known = ledger.state.plan is not None
    if ledger.state.plan and ledger.state.plan.get("claims") != record.get("claims"):
        say(f"{place}: its claims stay as they were when it began; those that are declared now are not recorded")
    others = [] if record["fresh"] else reuse.beside(folder)
    conductor = Conductor(plan, ledger, reuse.Earlier(others, loaded.files, say))
    if known and conductor.finished and not asked:
        say(f"{place}: this sweep has ended; nothing to do")
        return _report(conductor, 0)
    return _report(conductor, _run(conductor, record, loaded, address, asked))


def _run(conductor: Conductor, record: Record, loaded: Loaded, address: str, asked: Sequence[Record]) -> int:
    folder, known = conductor.ledger.folder, conductor.state.plan is not None
    namespace = f"offrl-{record['digest']}-{secrets.token_hex(4)}"
    wanted, here = Resources(**record["resources"]), versions()
    cfgs, found, follow = [c.cfg for c in conductor.plan.cells], session.locate(address), None
    if found.address == LOCAL:
        fits_here(wanted, cfgs, here)
    with session.ray_session(found, namespace) as told, draining(conductor) as code:
        # Ray reads its settings when it is imported; and --help and bad input answer without it
        from offrl_ray.distributed.fit import fit

        say(told)
        nodes, resources = _reserve(conductor, wanted, cfgs, loaded, found.address, here)
        session_ = {"kind": "session", "host": socket.gethostname(), "pid": os.getpid(), "argv": sys.argv}
        session_ |= {"address": found.address, "nodes": [n.record() for n in nodes], "versions": here}
        session_ |= {"resources": dataclasses.asdict(resources)}
        # a kill may leave the first of these alone, which must not be the session: it owes nothing
        conductor.write(*([] if known else [record]), *asked, session_)
        if known:
            left = sum(conductor.state.counts()[s] for s in ("running", "queued"))
            say(f"{called(folder)}: going on with the {left} known points that have not ended")
        follow = Follow(conductor, Keep(**record["keep"]))
        fit(resources, loaded, conductor, namespace, follow, say)
    if follow is None:  # ended at once, before it began
        return next(iter(code), 0)
    follow()
    follow.close()
    derived.rebuild(folder)
    return next(iter(code), 0)


def _reserve(
    conductor: Conductor,
    wanted: Resources,
    cfgs: list[RunConfig],
    loaded: Loaded,
    address: str,
    here: dict[str, str],
) -> tuple[list[preflight.Node], Resources]:
    """The nodes of the Ray that was joined, and what trials and evaluators reserve there.

    Raises UsageError if it cannot hold the sweep.
    """
    import ray

    from offrl_ray.distributed.pack import pack

    alone, folder = address == LOCAL, conductor.ledger.folder
    own = preflight.machine(here)._replace(resources=ray.cluster_resources())
    nodes = [own] if alone else preflight.nodes([] if store(folder) else [folder])
    kinds = [] if alone else preflight.kinds()
    if wanted.pack:
        known = feasible.resolved(wanted, nodes, kinds)
        feasible.resources(_any_share(known, cfgs), cfgs, nodes, here, kinds)
        found = pack(conductor.plan, loaded, known, say)
        say(found.told)
        wanted = found.resources
    resources, notes = feasible.resources(wanted, cfgs, nodes, here, kinds)
    for note in notes:
        say(note)
    return nodes, resources


def fits_here(wanted: Resources, cfgs: list[RunConfig], here: dict[str, str]) -> None:
    """Raises UsageError if this machine, of the versions `here`, cannot hold a sweep."""
    feasible.resources(_any_share(wanted, cfgs), cfgs, [preflight.machine(here)], here, [])


def _any_share(wanted: Resources, cfgs: list[RunConfig]) -> Resources:
    """With shares so small that they always fit, where packing has yet to find them."""
    if not wanted.pack:
        return wanted
    gpus = wanted.gpus_per_trial or any(c.train.on_gpu for c in cfgs)
    return dataclasses.replace(wanted, cpus_per_trial=1e-3, gpus_per_trial=1e-3 if gpus else 0)


class Follow:
    """Reads the records as they come: event files, lines for the terminal, checkpoints that need not stay."""

    def __init__(self, conductor: Conductor, keep: Keep):
        self._conductor, self._keep = conductor, keep
        self._events = events.EventFiles(conductor.ledger.folder / derived.EVENTS, conductor.ledger.log)
        self._progress = Progress(conductor.state, say)
        self._seen = len(conductor.ledger.log)

    def __call__(self) -> None:
        new, self._seen = self._conductor.ledger.log[self._seen :], len(self._conductor.ledger.log)
        for record in new:
            self._events.add(record)
            self._progress.add(record)
        if any(r["kind"] == "end" for r in new) and (self._keep.top, self._keep.bytes) != (None, None):
            self._drop()

    def close(self) -> None:
        self._events.close()

    def _drop(self) -> None:
        folder, first = self._conductor.ledger.folder, self._conductor.plan.objectives[0]
        stored = []
        for t in self._conductor.state.trials.values():
            value = t.value(first.metric)
            score = None if value is None else first.sign * value
            sizes = checkpoint.sizes(safe_trial(folder, t.name)) if t.attempt else {}
            stored.append(Stored(t.name, t.status if t.ended else "", score, sizes))
        of = {s.name: s.checkpoints for s in stored}
        for name, steps in to_drop(stored, self._keep.top, self._keep.bytes).items():
            freed = sum(of[name][step] for step in steps)
            # told first: a kill in between leaves more than was said, never less
            self._conductor.write({"kind": "dropped", "trial": name, "steps": steps, "bytes": freed})
            if self._conductor.draining:  # it may not have been written
                return
            for step in steps:
                checkpoint.remove(safe_trial(folder, name), step)


def _report(conductor: Conductor, code: int) -> int:
    counts, folder = conductor.state.counts(), conductor.ledger.folder
    place = called(folder)
    left = counts["running"] + counts["queued"]
    shown = ", ".join(f"{n} {status}" for status, n in counts.items() if n)
    say(f"{shown or 'nothing was run'}\nrecords: {called(records.kept(folder))}")
    if conductor.draining and not code:
        say(f"stopped: {conductor.draining}", error=True)
    if left:
        say(f"the same command, or `offrl-ray resume {place}`, goes on with {left} points", error=True)
    if counts["failed"]:
        say(f"`offrl-ray status {place}` says why trials failed, `offrl-ray retry` opens them", error=True)
    if conductor.disk_full:
        return DISK_FULL
    return code or int(left > 0 or counts["failed"] > 0 or bool(conductor.draining) or not conductor.finished)
