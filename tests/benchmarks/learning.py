"""Does every variant learn? Each with its seeds and intervals, by the command a user would type.

python tests/benchmarks/learning.py OUT [--only NAME ...] [--seeds 0,1,2] [--workers 2] [--episodes 40]

Settings are those of the `quick` presets in tune_configs/, on the demonstrations that those sweeps collect:
lift     every offline variant on LiftPegUpright-v1, equal updates
cartpole cql_dqn on CartPole-v1 over cql_alpha, mean return of the last 10 evaluations
push     RLPD on PushCube-v1 from sparse reward, with 20 demonstrations and with none
"""

import argparse
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from offrl_ray import records
from offrl_ray.distributed.launch import demonstrations
from results_analysis.stats import Estimate, mean_over_seeds, rate_over_seeds

ROOT = Path(__file__).parents[2]
LAST = 10


class Job(NamedTuple):
    group: str
    name: str
    variant: str
    settings: dict[str, Any]
    demos: bool = True


def quick(variant: str) -> Any:
    path = ROOT / "tune_configs" / f"tune_{variant}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SWEEP.presets["quick"]


def jobs() -> Iterator[Job]:
    end, cool = {"eval.every": 100_000}, {"algo.init_temperature": 0.1}
    lift: dict[str, tuple[str, dict[str, Any]]] = {
        "flow_bc": ("flow_bc", {"algo.ema_decay": 0.99}),
        "gaussian_bc mse": ("gaussian_bc", {"algo.loss": "mse", "algo.lr": 1e-3}),
        "gaussian_bc nll": ("gaussian_bc", {"algo.loss": "nll", "algo.lr": 1e-3}),
        "cpql alpha 0.05": ("cpql", {"algo.alpha": 0.05}),
        "awcp beta 10": ("awcp", {"algo.beta": 10.0}),
        "dqc": ("dqc", {}),
        "sac sac": ("sac", {"algo.actor_loss": "sac", **cool}),
        "sac td3bc": ("sac", {"algo.actor_loss": "td3bc", **cool}),
        "sac awr": ("sac", {"algo.actor_loss": "awr", **cool}),
        "sac iql": ("sac", {"algo.actor_loss": "iql", **cool}),
        "cql cql_alpha 1": ("cql", {"algo.cql_alpha": 1.0}),
    }
    for name, (variant, settings) in lift.items():
        yield Job("lift", name, variant, {**end, "train.steps": 2000, **settings})
    for alpha in (0, 0.1, 0.5, 1, 2, 5):
        yield Job("cartpole", f"cql_alpha {alpha}", "cql_dqn", {"algo.cql_alpha": alpha, "train.seeds": "0,1,2,3,4"})
    push = {"env.id": "PushCube-v1", "algo.cta_ratio": 4, "algo.num_critics": 4}
    yield Job("push", "20 demonstrations", "rlpd", push)
    yield Job("push", "no demonstrations", "rlpd", push, demos=False)


def run(job: Job, out: Path, seeds: str, episodes: int) -> None:
    preset = quick(job.variant)
    files = [str(demonstrations(preset.demos))] if job.demos else []
    settings = dict(preset.overrides) | {"train.seeds": seeds}
    settings |= {} if job.group == "cartpole" else {"eval.episodes": episodes}
    command = [sys.executable, "-m", "offrl_ray", "train", job.variant, "--out", str(folder(job, out))]
    command += [word for f in files for word in ("--data", f)]
    for key, value in {**settings, **job.settings}.items():
        text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        command += ["--set", f"{key}=[{text}]" if isinstance(value, list | tuple) else f"{key}={text}"]
    with (out / f"{job.group}-{job.name}.log".replace(" ", "_")).open("w") as log:
        subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, check=False)


def folder(job: Job, out: Path) -> Path:
    return out / f"{job.group}-{job.name}".replace(" ", "_")


def report(job: Job, out: Path) -> str:
    log = records.read(folder(job, out)).records if folder(job, out).exists() else []
    ends = [r for r in log if r["kind"] == "end"]
    if not ends:
        return f"| {job.group} | {job.name} | did not end, see its .log | | |"
    evals: dict[int, list[Any]] = {}
    for r in log:
        if r["kind"] == "eval":
            evals.setdefault(r["seed"], []).append(r)
    last = {seed: sorted(rs, key=lambda r: r["step"])[-LAST:] for seed, rs in evals.items()}
    if job.group == "cartpole":
        each = [fmean(x for r in rs for x in r["return"]) for rs in last.values()]
        found, name = mean_over_seeds(each), f"return, last {LAST} evaluations"
    else:
        each = [fmean(rs[-1]["success_once"]) for rs in last.values()]
        found, name = rate_over_seeds([rs[-1]["success_once"] for rs in last.values()]), "success_once"
    steps, seconds = ends[-1]["step"], ends[-1]["cost"]["train_seconds"]
    per_seed = " ".join(f"{x:.2f}" for x in each)
    return f"| {job.group} | {job.name} | {name} {_show(found)} | {per_seed} | {steps} updates, {seconds:.0f} s |"


def _show(found: Estimate | None) -> str:
    if found is None:
        return "none"
    low, high = found.interval or (float("nan"), float("nan"))
    return f"{found.mean:.2f} [{low:.2f}, {high:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="*", help="names or groups")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--episodes", type=int, default=40, help="per seed, at the end")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    chosen = [j for j in jobs() if not args.only or j.group in args.only or j.name in args.only]
    for job in chosen:
        if job.demos:
            demonstrations(quick(job.variant).demos)
    with ThreadPoolExecutor(args.workers) as pool:
        list(pool.map(lambda j: run(j, args.out, args.seeds, args.episodes), chosen))
    print("| task | what | mean over seeds [95 % interval] | each seed | cost |\n|---|---|---|---|---|")
    for job in chosen:
        print(report(job, args.out))


if __name__ == "__main__":
    main()
