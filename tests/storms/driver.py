"""Kill a sweep's driver again and again, and compare what comes out with a sweep that nobody killed.

python -m tests.storms.driver --out /tmp/storm --kills 20 --seed 0

Every session is killed in one phase of its life, all phases equally often, at a random moment of it. After every kill
the records must be clean, while what the dead driver left is still dying. At the end every trial has ended once, and
its training and evaluations are those of the quiet sweep, bit for bit.
"""

import argparse
import os
import random
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.distributed.user import ROOT, Record, Session, log_of, redone, results, violations

SCRIPT = ROOT / "tune_configs/tune_cpql.py"
SIZE = ["train.steps=100", "eval.every=20", "train.report_every=10"]
EVERY = 20
PHASES: dict[str, tuple[Callable[[Record], bool], float]] = {
    # what the session must have written, and how long after it the kill comes at the latest, in seconds
    "ray start": (lambda r: r["kind"] == "session", 8.0),
    "trial start": (lambda r: r["kind"] == "start", 0.5),
    "training": (lambda r: r["kind"] == "train" and r["step"] < 100, 2.0),
    "evaluating": (lambda r: r["kind"] == "train" and r["step"] % EVERY == 0, 1.0),
    "trial end": (lambda r: r["kind"] == "end", 0.3),
}


def command(out: Path, extra: list[str]) -> list[str]:
    settings = [word for s in SIZE for word in ("--set", s)]
    return [str(SCRIPT), "--preset", "smoke", "--fresh", "--out", str(out), *settings, *extra]


def linger(session: Session, died: float, longest: dict[str, float]) -> None:
    """How long the processes of a dead driver live at most, in seconds by title."""
    seconds = 0.0
    while (left := session.processes()) and seconds < 120:
        seconds = round(time.monotonic() - died, 1)
        for title in left.values():
            name = title.removesuffix(" ").split(" ")[0].split(".")[0].rsplit("/", 1)[-1]
            longest[name] = max(seconds, longest.get(name, 0.0))
        time.sleep(0.2)


def phases(kills: int, rng: random.Random) -> list[str]:
    """All phases equally often in a random order; the last kill comes when the last trial has ended."""
    chosen = [list(PHASES)[i % len(PHASES)] for i in range(kills - 1)]
    rng.shuffle(chosen)
    return [*chosen, "sweep end"]


def strike(session: Session, folder: Path, phase: str, rng: random.Random) -> bool:
    """Kill the driver in a phase; False if it ended before."""
    before = len(log_of(folder))

    def reached() -> bool:
        log = log_of(folder)
        if phase == "sweep end":
            points = next((len(r["points"]) for r in log if r["kind"] == "plan"), -1)
            return sum(r["kind"] == "end" for r in log) == points
        return any(map(PHASES[phase][0], log[before:]))

    try:
        session.until(reached, 400)
    except TimeoutError:
        return False
    time.sleep(rng.uniform(0, 0.5 if phase == "sweep end" else PHASES[phase][1]))
    alive = session.runs
    session.kill()
    return alive


def lose_ray(session: Session, folder: Path) -> None:
    """Kill Ray's head process under a living driver, which must end by itself."""
    before = len(log_of(folder))
    session.until(lambda: any(r["kind"] == "train" for r in log_of(folder)[before:]), 300)
    head = next(pid for pid, title in session.processes().items() if "gcs_server" in title)
    began = time.monotonic()
    os.kill(head, signal.SIGKILL)
    code = session.ended(300)
    print(f"Ray's head killed: the driver ended with {code} after {time.monotonic() - began:.0f} s", flush=True)


def storm(home: Path, out: Path, kills: int, seed: int, extra: list[str], gcs: bool) -> int:
    rng, folder, began = random.Random(seed), out / "stormy/cpql-smoke", time.monotonic()
    done, left, threads, found = Counter[str](), dict[str, float](), [], list[str]()
    for i, phase in enumerate(phases(kills, rng)):
        session = Session(home, *command(out / "stormy", extra))
        hit = strike(session, folder, phase, rng)
        done[phase if hit else "missed"] += 1
        threads.append(threading.Thread(target=linger, args=(session, time.monotonic(), left)))
        threads[-1].start()
        found += violations(folder)
        ends = sum(r["kind"] == "end" for r in log_of(folder))
        print(f"kill {i + 1} ({phase}{'' if hit else ': missed'}): {ends} ends, {len(found)} violations", flush=True)
        if not hit:
            print(session.text[-3000:], flush=True)
    if gcs:
        lose_ray(Session(home, *command(out / "stormy", extra)), folder)
        found += violations(folder)
    last = Session(home, *command(out / "stormy", extra))
    code = last.ended(900)
    for t in threads:
        t.join()
    found += violations(folder)
    log = log_of(folder)
    steps = redone(log)
    print(f"kills {sum(done.values()) - done['missed']}: {dict(done)}; exit code at the end {code}")
    print(f"wall {time.monotonic() - began:.0f} s; sessions {sum(r['kind'] == 'session' for r in log)}")
    print(f"redone steps: max {max(steps, default=0)}, sum {sum(steps)}, restarts of trials {len(steps)}")
    print(f"what killed drivers left over lived for at most, in seconds: {left}")
    print("fsck violations:", found or "none")
    return code or len(found) or int(max(steps, default=0) > EVERY)


def differences(quiet: list[Record], stormy: list[Record]) -> list[str]:
    ends = [Counter((r["trial"], r["status"]) for r in log if r["kind"] == "end") for log in (quiet, stormy)]
    found = [] if ends[0] == ends[1] and set(ends[1].values()) == {1} else [f"ends differ: {ends}"]
    for kind, a, b in zip(("train", "eval"), results(quiet), results(stormy), strict=True):
        found += [f"{kind} {key} differs" for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)]
        print(f"{kind}: {len(a)} records of the quiet sweep, {len(b)} of the stormy one")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=None, help="default: a temporary folder")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gcs", action="store_true", help="at last kill Ray's head process")
    parser.add_argument("--set", action="append", default=[])
    args = parser.parse_args()
    out = (args.out or Path(tempfile.mkdtemp())).absolute()
    extra = [word for s in args.set for word in ("--set", s)]
    home = out / "home"
    home.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    code = Session(home, *command(out / "quiet", extra)).ended(900)
    print(f"quiet sweep: exit code {code}, {time.monotonic() - began:.0f} s", flush=True)
    bad = code or storm(home, out, args.kills, args.seed, extra, args.gcs)
    found = differences(log_of(out / "quiet/cpql-smoke"), log_of(out / "stormy/cpql-smoke"))
    print("\n".join(found) or "same results, bit for bit")
    return int(bool(bad or found))


if __name__ == "__main__":
    raise SystemExit(main())
