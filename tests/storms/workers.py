"""Kill and freeze the processes of a sweep under one living driver, and compare with a sweep that was left alone.

python -m tests.storms.workers --out /tmp/storm --injections 20 --seed 0

Trials and evaluators meet SIGKILL and SIGSTOP in a random order at random moments; none is hit while it is frozen. A
trial that was hit more often than its class of failure allows has failed by then, and `offrl-ray retry --failed` must
complete it.
"""

import argparse
import os
import random
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.distributed.user import Record, Session, log_of, redone, violations
from tests.storms.driver import EVERY, SCRIPT, differences

TRIAL, EVALUATOR = ("Trial", "ResourceTrainable"), ("RolloutActor",)  # idle, and at work
KINDS = {
    "trial killed": (TRIAL, signal.SIGKILL, 7),
    "trial frozen": (TRIAL, signal.SIGSTOP, 3),
    "evaluator killed": (EVALUATOR, signal.SIGKILL, 7),
    "evaluator frozen": (EVALUATOR, signal.SIGSTOP, 3),
}


def command(out: Path, hang: int) -> list[str]:
    size = ["--set", "train.steps=200", "--set", f"eval.every={EVERY}", "--set", "train.report_every=10"]
    return [str(SCRIPT), "--preset", "smoke", "--fresh", "--hang-after", str(hang), "--out", str(out), *size]


def strike(session: Session, kind: str, rng: random.Random) -> str:
    """Hit a random process of a kind that has work to do."""
    names, number, _ = KINDS[kind]
    found = session.until(lambda: [pid for pid in session.actors(*names) if not frozen(pid)], 120)
    pid = rng.choice(found)
    title = session.processes().get(pid, "gone")
    os.kill(pid, number)
    return title


def frozen(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return True


def storm(session: Session, folder: Path, injections: int, rng: random.Random) -> Counter[str]:
    kinds = [kind for kind, (_, _, count) in KINDS.items() for _ in range(count)][:injections]
    rng.shuffle(kinds)
    done = Counter[str]()
    session.until(lambda: any(r["kind"] == "train" for r in log_of(folder)), 300)
    for kind in kinds:
        time.sleep(rng.uniform(1, 5))
        if not session.runs:
            break
        try:
            title = strike(session, kind, rng)
        except (TimeoutError, ProcessLookupError) as e:
            title, kind = str(e), "missed"
        done[kind] += 1
        print(f"{kind}: {title}; {sum(r['kind'] == 'end' for r in log_of(folder))} ends", flush=True)
    return done


def told(log: list[Record]) -> str:
    faults = Counter(r["failure"] for r in log if r["kind"] == "fault")
    failed = [(r["trial"], r["failure"], r["reason"]) for r in log if r["kind"] == "end" and r["status"] == "failed"]
    notes = Counter(r["text"].split(": ", 1)[-1] for r in log if r["kind"] == "note")
    return f"attempts lost: {dict(faults)}; failed: {failed or 'none'}; evaluations lost: {dict(notes)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=None, help="default: a temporary folder")
    parser.add_argument("--injections", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hang-after", type=int, default=20)
    args = parser.parse_args()
    out = (args.out or Path(tempfile.mkdtemp())).absolute()
    home, quiet, stormy = out / "home", out / "quiet/cpql-smoke", out / "stormy/cpql-smoke"
    home.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    code = Session(home, *command(out / "quiet", args.hang_after)).ended(900)
    print(f"quiet sweep: exit code {code}, {time.monotonic() - began:.0f} s", flush=True)
    began = time.monotonic()
    session = Session(home, *command(out / "stormy", args.hang_after))
    done = storm(session, stormy, args.injections, random.Random(args.seed))
    first = session.ended(1800)
    print(session.text[-2000:])
    print(f"injections {sum(done.values()) - done['missed']}: {dict(done)}; exit code {first}")
    left, found = session.processes(), violations(stormy)
    print(told(log_of(stormy)))
    if first:
        again = Session(home, "-m", "offrl_ray", "retry", stormy, "--failed")
        print(f"retry --failed: exit code {again.ended(900)}")
        found += violations(stormy)
    steps = redone(log_of(stormy))
    print(f"redone steps: max {max(steps, default=0)}, sum {sum(steps)}, restarts of trials {len(steps)}")
    print(
        f"wall {time.monotonic() - began:.0f} s; processes left: {left or 'none'}; fsck violations: {found or 'none'}"
    )
    found += differences(without_void_ends(log_of(quiet)), without_void_ends(log_of(stormy)))
    print("\n".join(found) or "same results, bit for bit")
    return int(bool(code or left or found or max(steps, default=0) > EVERY))


def without_void_ends(log: list[Record]) -> list[Record]:
    """Without the ends that a retry made void."""
    retried = {r["trial"] for r in log if r["kind"] == "retry"}
    return [r for r in log if not (r["kind"] == "end" and r["status"] == "failed" and r["trial"] in retried)]


if __name__ == "__main__":
    raise SystemExit(main())
