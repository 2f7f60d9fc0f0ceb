"""What the driver costs: sweeps of trials that do nothing but report, on real Ray with a real ledger.

python tests/benchmarks/driver.py [--trials 250,500,1000] [--reports 5] [--search random]
"""

import argparse
import dataclasses
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # after installation too: tests are no package

from offrl_ray import records
from offrl_ray.distributed import session
from offrl_ray.sweep import fsck, status
from offrl_ray.sweep.conductor import Conductor
from offrl_ray.sweep.ledger import Ledger
from offrl_ray.sweep.plan import Demos, Keep, Plan, Preset, Resources, Sweep, plan, plan_record
from offrl_ray.sweep.space import Float
from offrl_ray.sweep.spec import SearchSpec
from offrl_ray.sweep.state import State

METRICS = {f"metric_{i:02d}": i / 7 for i in range(20)}
EVERY = 10


def work(trials: int, reports: int, sampler: str) -> tuple[Plan, dict[str, Any]]:
    """A plan of so many points, and its record; a seed each, evaluated at the end."""
    alphas = [i / trials for i in range(1, trials + 1)] if sampler == "grid" else Float(1e-3, 1.0, log=True)
    settings = {"train.steps": EVERY * reports, "train.report_every": EVERY, "train.seeds": [0], "eval.episodes": 1}
    preset = Preset(about="", overrides=settings | {"eval.every": EVERY * reports}, demos=Demos(env_id="X", episodes=1))
    sweep = Sweep(name="driver", question="", variant="cpql", axes={"algo.alpha": alphas}, presets={"x": preset})
    spec = None if sampler == "grid" else SearchSpec(sampler, trials)
    made = plan(sweep, "x", {}, ["none.h5"], spec)
    return made, plan_record(sweep, "x", made, [], {}, Resources(), Keep())


def trainable(reports: int) -> Any:
    """A Tune trainable that says what run.run says, and does nothing."""
    from ray import tune

    class Reporter(tune.Trainable):  # type: ignore[misc]
        def setup(self, config: dict[str, Any]) -> None:
            self.reset_config(config)

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.job, self.count = new_config["job"], 0
            return True

        def step(self) -> dict[str, Any]:
            self.count += 1
            trial, step = self.job.trial, self.count * EVERY
            fields = {"trial": trial, "seed": 0, "step": step}
            batch = [{"kind": "start", "trial": trial, "step": 0}] if self.count == 1 else []
            batch.append({"kind": "train", **fields, "metrics": METRICS, "seconds": 0.0})
            if self.count == reports:
                episode = {"success_once": [1], "success_at_end": [1], "return": [1.0], "length": [1]}
                episode |= {"q_start": [1.0], "discounted_return": [1.0]}
                bound = {"digest": "0" * 64, "members": [0], "episodes": 1, "env": {}, "episode_seeds": [0]}
                batch.append({"kind": "eval", **fields, **bound, **episode, "seconds": 0.0})
                end = {"status": "completed", "failure": "", "reason": "", "step": step, "diverged": {}, "cost": {}}
                batch.append({"kind": "end", "trial": trial, **end})
            return {"trial": trial, "records": batch, "done": self.count == reports}

    return Reporter


def measure(folder: Path, trials: int, reports: int, sampler: str) -> None:
    from offrl_ray.distributed.fit import schedule

    made, record = work(trials, reports, sampler)
    with Ledger(folder) as ledger:
        conductor = Conductor(made, ledger)
        conductor.write({"kind": "session", "host": "", "pid": os.getpid(), "argv": [], "versions": {}}, record)
        wall, cpu = time.perf_counter(), time.process_time()
        schedule(trainable(reports), conductor, dataclasses.replace(Resources(), cpus_per_trial=1), lambda: None, print)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        ended = conductor.state.counts()["completed"]
    took = {}
    for name, call in {
        "status": lambda: status.text(status.summary(State.read(folder), time.time(), False)),
        "resume": lambda: _resume(folder, made),
        "fsck": lambda: fsck.check(folder, None),
    }.items():
        began = time.perf_counter()
        call()
        took[name] = time.perf_counter() - began
    size = (folder / records.FILE).stat().st_size
    each = f"{1e3 * wall / trials:.1f} ms a trial, {1e3 * wall / trials / reports:.1f} a report"
    driver = f"driver {1e3 * cpu / trials:.1f} ms a trial, {1e3 * cpu / trials / reports:.2f} a report"
    rest = ", ".join(f"{k} {v:.2f} s" for k, v in took.items())
    print(
        f"{sampler:6} {ended}/{trials}: wall {wall:.1f} s, {each}; {driver}; {size / 2**20:.1f} MiB; {rest}", flush=True
    )


def _resume(folder: Path, made: Plan) -> None:
    with Ledger(folder) as ledger:
        assert Conductor(made, ledger).finished


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", default="250,500,1000")
    parser.add_argument("--reports", type=int, default=5)
    parser.add_argument("--search", default="grid")
    args = parser.parse_args()
    with session.ray_session(session.locate("local"), "driver"):
        for trials in map(int, args.trials.split(",")):
            with tempfile.TemporaryDirectory() as folder:
                measure(Path(folder), trials, args.reports, args.search)


if __name__ == "__main__":
    main()
