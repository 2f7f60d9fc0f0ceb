"""What do the stop rules do to real runs? Healthy ones of every variant, lost ones, and a grid that holds both.

python tests/benchmarks/divergence.py OUT [--only GROUP ...] [--fixture FILE]

Settings are those of the `quick` presets in tune_configs/ with smaller networks and batches, on the demonstrations that
those sweeps collect; every run goes to its end, and the rules are applied to its reports afterwards. OUT holds a file
per run, a curve per seed; what is there is not run again. `--fixture` writes what tests/test_divergence.py replays.
"""

import argparse
import gzip
import json
import math
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from offrl_ray.algos import make
from offrl_ray.config import RunConfig, resolve
from offrl_ray.data.dataset import Dataset
from offrl_ray.distributed.launch import demonstrations
from offrl_ray.evaluate import EvalRequest, evaluate_members, open_env
from offrl_ray.online import LocalWalk, Online
from offrl_ray.policy import acting_and_critic
from offrl_ray.run import in_env, load_data
from offrl_ray.sweep.divergence import Finding, Report, judge
from offrl_ray.train import start, train
from tests.benchmarks.learning import quick

SEEDS = (0, 1)
FLOW = {"algo.network.width": 64, "algo.critic_hidden": [64, 64], "train.batch_size": 32}
SOFT = {"algo.hidden": [64, 64], "algo.critic_hidden": [64, 64], "train.batch_size": 32, "algo.num_critics": 3}
HELD = {"algo.init_temperature": 1e-4, "algo.lr_temperature": 0.0}
RAW = {"algo.q_norm": "none", "algo.q_grad_mode": "whole_grad", "algo.alpha": 0.2}
FREE = {"algo.grad_clip": None, "algo.tau": 0.05}
"""Two brakes on a critic that runs away, taken off."""


class Case(NamedTuple):
    group: str
    name: str
    variant: str
    settings: dict[str, Any]
    steps: int = 800


def cases() -> Iterator[Case]:
    yield from healthy()
    yield from lost()
    yield from grid()


def healthy() -> Iterator[Case]:
    runs: dict[str, tuple[str, dict[str, Any]]] = {
        "cpql alpha 0": ("cpql", FLOW | {"algo.alpha": 0.0}),
        "cpql alpha 0.05": ("cpql", FLOW | {"algo.alpha": 0.05}),
        "cpql coinflip": ("cpql", FLOW | RAW | {"algo.q_norm": "coinflip"}),
        "awcp beta 10": ("awcp", FLOW),
        "awcp value": ("awcp", FLOW | {"algo.baseline": "value"}),
        "dqc": ("dqc", FLOW),
        "dqc reward_scale 0.1": ("dqc", FLOW | {"algo.reward_scale": 0.1}),
        "sac td3bc": ("sac", SOFT | HELD | {"algo.actor_loss": "td3bc"}),
        "sac td3bc adaptive": ("sac", SOFT | HELD | {"algo.actor_loss": "td3bc", "algo.lam_mode": "adaptive"}),
        "sac awr": ("sac", SOFT | {"algo.actor_loss": "awr", "algo.init_temperature": 0.1}),
        "sac iql": ("sac", SOFT | {"algo.actor_loss": "iql"}),
        "sac backup_entropy": ("sac", SOFT | {"algo.actor_loss": "td3bc", "algo.backup_entropy": True}),
        "cql": ("cql", SOFT | {"algo.cql_alpha": 1.0}),
        "flow_bc": ("flow_bc", {"algo.network.width": 64, "train.batch_size": 32}),
        "gaussian_bc mse": ("gaussian_bc", {"algo.loss": "mse", "algo.lr": 1e-3}),
        "gaussian_bc nll": ("gaussian_bc", {"algo.loss": "nll", "algo.lr": 1e-3}),
        "rlpd": ("rlpd", {"algo.cta_ratio": 2, "algo.num_critics": 2, "train.batch_size": 32}),
        "cql_dqn 0.5": ("cql_dqn", {"algo.cql_alpha": 0.5}),
        "cql_dqn 5": ("cql_dqn", {"algo.cql_alpha": 5.0}),
    }
    for name, (variant, settings) in runs.items():
        yield Case("healthy", name, variant, settings)


def lost() -> Iterator[Case]:
    alone = SOFT | {"algo.actor_loss": "sac", "algo.init_temperature": 0.01}
    runs: dict[str, tuple[str, dict[str, Any]]] = {
        "cpql raw": ("cpql", FLOW | RAW),
        "cpql raw, alpha 1000": ("cpql", FLOW | RAW | FREE | {"algo.alpha": 1000.0}),
        "cpql raw, alpha 1000, lr_critic 0.03": (
            "cpql",
            FLOW | RAW | FREE | {"algo.alpha": 1000.0, "algo.lr_critic": 0.03},
        ),
        "cpql raw, lr 1e30": ("cpql", FLOW | RAW | {"algo.lr": 1e30}),
        "sac": ("sac", alone),
        "sac, no LayerNorm": ("sac", alone | FREE | {"algo.layer_norm": False, "algo.lr_critic": 3e-3}),
        "sac, lr 1e30": ("sac", alone | {"algo.lr": 1e30}),
        "cql_dqn 0": ("cql_dqn", {"algo.cql_alpha": 0.0}),
    }
    for name, (variant, settings) in runs.items():
        yield Case("lost", name, variant, settings)


def grid() -> Iterator[Case]:
    """The documents' alpha x q_grad_mode with a critic that can run away; and two actors with and without brakes."""
    peg = {"train.batch_size": 64, **FREE, "algo.lr_critic": 0.03}
    for alpha in (0.01, 0.2, 1000.0):
        for mode in ("single_step", "last_5", "whole_grad"):
            yield Case("cpql grid", f"{alpha:g} {mode}", "cpql", peg | {"algo.alpha": alpha, "algo.q_grad_mode": mode})
    for loss in ("sac", "td3bc"):
        for norm in (True, False):
            free = {"train.batch_size": 64, **FREE, **HELD, "algo.lr_critic": 3e-3, "algo.layer_norm": norm}
            name = f"{loss}{'' if norm else ', no LayerNorm'}"
            yield Case("sac grid", name, "sac", free | {"algo.actor_loss": loss}, 1200)


def flat(case: Case) -> dict[str, Any]:
    """All settings of a case but its data."""
    about = {"algo.name": case.variant, "train.seeds": SEEDS, "train.steps": case.steps, "train.report_every": 50}
    return {**quick(case.variant).overrides, **about, "eval.every": 10**6, "eval.episodes": 20, **case.settings}


def config(case: Case) -> RunConfig:
    return resolve(flat(case) | {"data.files": [str(demonstrations(quick(case.variant).demos))]})


def curves(case: Case) -> list[dict[str, Any]]:
    """One run of a case to its end, as one curve per seed."""
    cfg = config(case)
    data = load_data(cfg)
    cfg, demos = in_env(cfg, data.env_id), Dataset(data.arrays, data.spec)
    alg = make(cfg.algo, data.spec)
    walks = [LocalWalk(lambda: open_env(cfg.env)) for _ in SEEDS]
    reports: list[list[Report]] = [[] for _ in SEEDS]
    for p in train(cfg, alg, Online(cfg, alg, demos, walks) if cfg.online else demos, start(cfg, alg)):
        for i, own in enumerate(reports):
            own.append(Report(p.snapshot.step, {k: float(v[i]) for k, v in p.metrics.items()}))
    found = [{**case._asdict(), "seed": seed, "reports": own} for seed, own in zip(SEEDS, reports, strict=True)]
    if case.group.endswith("grid"):
        members = {seed: acting_and_critic(p.snapshot.state, i) for i, seed in enumerate(SEEDS) if finite(reports[i])}
        result = evaluate_members(EvalRequest(case.steps, "", cfg, data.spec, members), open_env(cfg.env))
        for curve in found:
            episodes = result.episodes.get(curve["seed"])
            curve["success"] = fmean(episodes.success_once) if episodes else 0.0
    return found


def case_of(curve: dict[str, Any]) -> Case:
    return Case(**{k: curve[k] for k in Case._fields})


def finite(reports: list[Report]) -> bool:
    return all(math.isfinite(x) for r in reports for x in r.metrics.values())


def judged(curve: dict[str, Any]) -> tuple[list[Finding], int]:
    """What the rules say while a curve unfolds, and the step at which it stops."""
    cfg = config(case_of(curve))
    history, told = [Report(*r) for r in curve["reports"]], list[Finding]()
    for n in range(1, len(history) + 1):
        found = judge(history[:n], cfg)
        told += found
        if any(f.action == "stop" for f in found):
            return told, history[n - 1].step
    return told, curve["steps"]


def table(found: list[dict[str, Any]]) -> Iterator[str]:
    yield "| group | run | seed | success | stopped at | findings |\n|---|---|---|---|---|---|"
    for curve in found:
        told, end = judged(curve)
        at = f"{end} of {curve['steps']}" if end < curve["steps"] or any(f.action == "stop" for f in told) else ""
        says = "; ".join(f"{f.action} {f.rule} at {f.step}: {f.reason}" for f in told)
        success = f"{curve['success']:.2f}" if "success" in curve else ""
        yield f"| {curve['group']} | {curve['name']} | {curve['seed']} | {success} | {at} | {says} |"


def saved(found: list[dict[str, Any]], group: str) -> str:
    """What stopping would have saved in a grid, and the best cells with and without it."""
    own = [c for c in found if c["group"] == group]
    ends = {(c["name"], c["seed"]): judged(c) for c in own}
    done, whole = sum(end for _, end in ends.values()), sum(c["steps"] for c in own)
    stopped = [c for c in own if any(f.action == "stop" for f in ends[c["name"], c["seed"]][0])]
    kept = [c for c in own if c not in stopped]
    return (
        f"{group}: {len(stopped)} of {len(own)} seeds stopped, {1 - done / whole:.0%} of {whole} updates saved; best "
        f"without stopping {best(own)}, with it {best(kept)}"
    )


def best(found: list[dict[str, Any]]) -> str:
    cells: dict[str, list[float]] = {}
    for c in found:
        cells.setdefault(c["name"], []).append(c["success"])
    name = max(cells, key=lambda k: fmean(cells[k]))
    return f"{name} ({fmean(cells[name]):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="*", help="groups: healthy, lost, 'cpql grid', 'sac grid'")
    parser.add_argument("--fixture", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for case in cases():
        path = args.out / f"{case.group}-{case.name}.json".replace(" ", "_")
        if not path.exists() and (not args.only or case.group in args.only):
            path.write_text(json.dumps(curves(case)))
            print(path, flush=True)
    found = [c for path in sorted(args.out.glob("*.json")) for c in json.loads(path.read_text())]
    print("\n".join(table(found)))
    for group in sorted({c["group"] for c in found if "success" in c}):
        print(saved(found, group))
    if args.fixture:
        args.fixture.write_bytes(
            gzip.compress(json.dumps([rounded(c) for c in found if "success" not in c]).encode(), mtime=0)
        )


def rounded(curve: dict[str, Any]) -> dict[str, Any]:
    reports = [(step, {k: float(f"{x:.5g}") for k, x in metrics.items()}) for step, metrics in curve["reports"]]
    return curve | {"settings": flat(case_of(curve)), "reports": reports}


if __name__ == "__main__":
    main()
