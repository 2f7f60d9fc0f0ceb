"""Does a search inside the cells of a grid find a better point than a finer grid of equal cost?

python tests/benchmarks/search.py OUT [--data CARTPOLE.h5] [--repetitions 5] [--grid 4,2,2] [--samplers tpe random]

Real training: cql_dqn on CartPole-v1, 400 updates, a grid over cql_alpha of two cells; inside each, learning rate,
discount and Polyak rate are chosen by every way in turn, as many points as the grid of that size has. All ways train a
repetition's points on the same seeds and judge them on the same episodes. The best point of a cell is then trained
again on seeds, and judged on episodes, that no choice has seen: this is the score.
"""

import argparse
import itertools
import json
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from offrl_ray import run
from offrl_ray.config import resolve
from offrl_ray.data.dataset import Dataset
from offrl_ray.distributed.launch import demonstrations
from offrl_ray.evaluate import LocalEvaluator, open_env
from offrl_ray.sweep.plan import Demos
from offrl_ray.sweep.search import Outcome, Search
from offrl_ray.sweep.space import Float
from offrl_ray.sweep.spec import Objective, SearchSpec
from results_analysis.stats import mean_over_seeds

SPACE = {
    "algo.lr": Float(1e-4, 3e-2, log=True),
    "algo.gamma": Float(0.8, 0.995),
    "algo.tau": Float(1e-3, 0.3, log=True),
}
CELLS = [{"algo.cql_alpha": 0.0}, {"algo.cql_alpha": 1.0}]
BASE = {
    "algo.name": "cql_dqn",
    "env.max_steps": 500,
    "env.num_envs": 10,
    "train.steps": 400,
    "train.report_every": 200,
    "eval.every": 400,
}
SEARCHED = {"eval.episodes": 10}
FRESH = {"train.seeds": list(range(1000, 1010)), "eval.seed": 500_000, "eval.episodes": 50}
SEEDS = 3


class Trainer:
    def __init__(self, file: Path):
        self.base = BASE | {"data.files": [str(file)]}
        data = run.load_data(resolve(self.base))
        self.data, self.env_id = Dataset(data.arrays, data.spec), data.env_id

    def score(self, settings: dict[str, Any]) -> list[float]:
        """Mean return of every seed's last policy."""
        cfg = run.in_env(resolve(self.base | settings), self.env_id)
        evaluator = LocalEvaluator(partial(open_env, cfg.env))
        with tempfile.TemporaryDirectory() as folder:
            updates = run.run(cfg, self.data, Path(folder), evaluator, "benchmark", frozenset())
            log = [r for update in updates for r in update.records]
        return [fmean(r["return"]) for r in log if r["kind"] == "eval"]


def between(domain: Float, share: float) -> float:
    if domain.log:
        return domain.low * (domain.high / domain.low) ** share
    return domain.low + (domain.high - domain.low) * share


def grid(sizes: list[int]) -> Iterator[dict[str, Any]]:
    """The middles of equal parts of every range, which is kinder to a grid than its ends."""
    shares = [[(i + 0.5) / n for i in range(n)] for n in sizes]
    for at in itertools.product(*shares):
        yield {k: between(d, s) for (k, d), s in zip(SPACE.items(), at, strict=True)}


def best(trainer: Trainer, way: str, cell: int, repetition: int, sizes: list[int]) -> tuple[float, dict[str, Any]]:
    """The best score of a cell and its values."""
    fixed = CELLS[cell] | SEARCHED | {"train.seeds": [SEEDS * repetition + i for i in range(SEEDS)]}
    points = list(grid(sizes))
    spec = SearchSpec(way, len(points), repetition, (Objective("return"),))
    search = Search(spec, SPACE, cell)
    found = []
    for number, point in enumerate(points):
        values = point if way == "grid" else search.ask(number)
        score = fmean(trainer.score(fixed | values))
        if way != "grid":
            search.tell(number, Outcome("completed", (score,), 0.0, BASE["train.steps"], ""))
        found.append((score, values))
    return max(found, key=lambda f: f[0])


def show(values: list[float]) -> str:
    found = mean_over_seeds(values)
    low, high = found.interval or (float("nan"),) * 2
    return f"{found.mean:.0f} [{low:.0f}, {high:.0f}]"


def report(rows: list[dict[str, Any]]) -> None:
    """Mean and 95 % Student interval over repetitions; differences are paired, since repetitions share their seeds."""
    ways = list(dict.fromkeys(r["way"] for r in rows))
    print(
        "| cell | way | return when chosen | return on fresh seeds | fresh, minus the grid's |\n|---|---|---|---|---|"
    )
    for cell in [*range(len(CELLS)), None]:
        fresh, chosen = {}, {}
        for way in ways:
            mine = [r for r in rows if r["way"] == way and cell in (None, r["cell"])]
            tops = [
                max((r for r in mine if r["repetition"] == i), key=lambda r: r["chosen"]) for i in repetitions(rows)
            ]
            fresh[way], chosen[way] = [r["fresh"] for r in tops], [r["chosen"] for r in tops]
        name = "best of both" if cell is None else json.dumps(CELLS[cell])
        for way in ways:
            difference = [a - b for a, b in zip(fresh[way], fresh["grid"], strict=True)]
            print(f"| {name} | {way} | {show(chosen[way])} | {show(fresh[way])} | {show(difference)} |")


def repetitions(rows: list[dict[str, Any]]) -> list[int]:
    return sorted({r["repetition"] for r in rows})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a JSON line per repetition, way and cell; what it has is not run again")
    parser.add_argument("--data", type=Path, help="default: the file that tune_cql_dqn.py --preset quick collects")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--grid", default="4,2,2", help="values of lr, gamma, tau")
    parser.add_argument("--samplers", nargs="+", default=["tpe", "random"])
    args = parser.parse_args()
    demos = Demos(env_id="CartPole-v1", episodes=200, control_mode="native", reward_mode="native")
    trainer = Trainer(args.data or demonstrations(demos))
    sizes = [int(n) for n in args.grid.split(",")]
    rows = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    done = {(r["repetition"], r["way"], r["cell"]) for r in rows}
    ways = ["grid", *args.samplers]
    for repetition, way, cell in itertools.product(range(args.repetitions), ways, range(len(CELLS))):
        if (repetition, way, cell) in done:
            continue
        score, values = best(trainer, way, cell, repetition, sizes)
        fresh = fmean(trainer.score(CELLS[cell] | values | FRESH))
        rows.append({"repetition": repetition, "way": way, "cell": cell, "chosen": score, "fresh": fresh, **values})
        with args.out.open("a") as log:
            log.write(json.dumps(rows[-1]) + "\n")
    report(rows)


if __name__ == "__main__":
    main()
