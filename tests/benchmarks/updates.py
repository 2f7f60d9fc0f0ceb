"""What an update of sac and cql costs, beside the arithmetic it consists of and beside d3rlpy's.

python tests/benchmarks/updates.py [--rounds N] [--d3rlpy PYTHON]

PYTHON is the interpreter of an environment of its own with d3rlpy 2.8.1 and the same torch. One core, processor time,
all tasks in turn in every round; d3rlpy's sizes: batch 256, two critics, two layers of 256 ReLUs, single actions; cql
with ten actions from each source. Ratios are medians over rounds: then both sides had the same neighbours.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

BATCH, OBS, ACTION, WIDTH, CRITICS, UPDATES = 256, 64, 7, 256, 2, 5
WARM_UP = 6
"""rounds that are not counted: memory comes from the kernel then"""
Task = Callable[[], object]


def milliseconds(task: Task) -> float:
    """Processor time of one of `UPDATES` in a row."""
    began = time.process_time()
    for _ in range(UPDATES):
        task()
    return 1e3 * (time.process_time() - began) / UPDATES


def arithmetic() -> tuple[Task, float]:
    """The matrix products of one SAC update, bare, and their number of operations.

    Forward: the policy at s and s', the critics at s', at the data and at the policy's actions. Backward, twice the
    forward for what is trained: policy and critics; once for the critics that only pass the policy its gradient.
    """
    policy = [(OBS, WIDTH), (WIDTH, WIDTH), (WIDTH, 2 * ACTION)]
    critic = [(OBS + ACTION, WIDTH), (WIDTH, WIDTH), (WIDTH, 1)]
    products = []
    for layers, members, forward, by_input, by_weight in ((policy, 1, 2, 1, 1), (critic, CRITICS, 3, 2, 1)):
        for i, o in layers:
            shapes = [(BATCH, i, o)] * forward + [(BATCH, o, i)] * by_input + [(i, BATCH, o)] * by_weight
            products += [
                (torch.randn(members, m, k), torch.randn(members, k, n), torch.empty(members, m, n))
                for m, k, n in shapes
            ]
    flops = sum(2 * a.numel() * b.shape[2] for a, b, _ in products)

    def run() -> None:
        for a, b, out in products:
            if 1 in (a.shape[2], b.shape[2]):  # by a vector: fastest as a sum
                torch.mul(a, b if a.shape[2] == 1 else b.transpose(1, 2))
            else:
                torch.bmm(a, b, out=out)

    return run, flops


def ours() -> dict[str, Task]:
    """Updates of our variants, and drawing their batch and noise."""
    from offrl_ray.algos import VARIANTS, make
    from offrl_ray.config import resolve
    from offrl_ray.data.dataset import Dataset, build
    from offrl_ray.data.hdf5 import Episode
    from offrl_ray.fields import hparams
    from offrl_ray.train import keep_memory

    keep_memory()  # as the training loop does

    rng, steps = np.random.default_rng(0), 1000
    end = np.arange(steps) == steps - 1
    frames = {"state": rng.standard_normal((steps + 1, OBS), np.float32)}
    action, reward = rng.uniform(-1, 1, (steps, ACTION)), rng.standard_normal(steps)
    episodes = [Episode("", frames, action.astype(np.float32), reward.astype(np.float32), end, end, ~end & end)] * 10
    arrays, spec = build([episodes], control_mode="pd_joint_pos", obs_horizon=1, act_horizon=1, pred_horizon=1)
    data = Dataset(arrays, spec)
    sizes = {"data.obs_horizon": 1, "data.act_horizon": 1, "data.pred_horizon": 1, "data.files": ["none"]}
    sizes |= {"algo.hidden": [WIDTH] * 2, "algo.critic_hidden": [WIDTH] * 2, "algo.num_critics": CRITICS}
    sizes |= {"algo.layer_norm": False, "algo.activation": "relu", "algo.num_min": CRITICS}
    tasks: dict[str, Task] = {}
    for name, more in (("sac", {"algo.actor_loss": "sac"}), ("cql", {})):
        if name not in VARIANTS:
            continue
        cfg = resolve({"algo.name": name, **sizes, **more})
        alg, hp, g = make(cfg.algo, spec), hparams(cfg.algo), torch.Generator().manual_seed(0)
        now = {"state": alg.init(g), "batch": data.batch(data.draw(g, BATCH)), "noise": alg.update_noise(g, BATCH)}

        def update(now=now, alg=alg, hp=hp) -> None:  # type: ignore[no-untyped-def]
            now["state"], _ = alg.update(now["state"], now["batch"], now["noise"], hp)

        def draw(alg=alg, g=g) -> None:  # type: ignore[no-untyped-def]
            data.batch(data.draw(g, BATCH))
            alg.update_noise(g, BATCH)

        tasks |= {name: update, f"{name} batch": draw}
    return tasks


def theirs() -> dict[str, Task]:
    """The same of d3rlpy."""
    import d3rlpy

    d3rlpy.logging.set_log_context()
    rng, steps = np.random.default_rng(0), 10_000
    ends = (np.arange(steps) % 1000 == 999).astype(np.float32)
    arrays = [rng.standard_normal((steps, n)).astype(np.float32) for n in (OBS, 1)]
    action = rng.uniform(-1, 1, (steps, ACTION)).astype(np.float32)
    data = d3rlpy.dataset.MDPDataset(arrays[0], action, arrays[1], ends)

    tasks: dict[str, Task] = {}
    for name, config in (("sac", d3rlpy.algos.SACConfig), ("cql", d3rlpy.algos.CQLConfig)):
        algo = config(batch_size=BATCH).create(device="cpu:0")
        algo.build_with_dataset(data)
        batch = data.sample_transition_batch(BATCH)
        tasks[name] = lambda algo=algo, batch=batch: algo.update(batch)
        tasks[f"{name} batch"] = lambda: data.sample_transition_batch(BATCH)
    return tasks


def serve(tasks: dict[str, Task]) -> None:
    """One line of JSON for each line of names."""
    print(json.dumps(list(tasks)), flush=True)
    for line in sys.stdin:
        print(json.dumps(milliseconds(tasks[line.strip()])), flush=True)


class Elsewhere:
    """Tasks of another interpreter, by name."""

    def __init__(self, python: str):
        command = [python, str(Path(__file__).resolve()), "--serve"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.names = self.answer()

    def answer(self):  # type: ignore[no-untyped-def]
        assert self.process.stdout
        while line := self.process.stdout.readline():
            try:
                return json.loads(line)
            except json.JSONDecodeError:
                continue  # it greets
        raise SystemExit("the other interpreter gave up; has it d3rlpy 2.8.1 and torch?")

    def milliseconds(self, name: str) -> float:
        assert self.process.stdin
        self.process.stdin.write(name + "\n")
        self.process.stdin.flush()
        return self.answer()


def ratio(mine: list[float], other: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(mine, other, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--d3rlpy", metavar="PYTHON")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.serve:
        serve(theirs())
        return
    floor, flops = arithmetic()
    tasks = {"floor": floor, **ours()}
    other = Elsewhere(args.d3rlpy) if args.d3rlpy else None
    times: dict[str, list[float]] = {}
    for _ in range(args.rounds + WARM_UP):
        for name, task in tasks.items():
            times.setdefault(name, []).append(milliseconds(task))
        for name in other.names if other else []:
            times.setdefault(f"d3rlpy {name}", []).append(other.milliseconds(name))
    times = {name: t[WARM_UP:] for name, t in times.items()}
    floors = times["floor"]
    print(f"arithmetic of one sac update: {flops / 1e9:.2f} GFLOP at {flops / min(floors) / 1e6:.0f} GFLOP/s")
    print(f"{'':18} {'median':>9} {'least':>9} {'/ floor':>8} {'/ d3rlpy':>8}")
    for name, t in times.items():
        theirs_too = times.get(f"d3rlpy {name}")
        beside = f"{ratio(t, theirs_too):8.2f}" if theirs_too else ""
        print(f"{name:18} {statistics.median(t):6.2f} ms {min(t):6.2f} ms {ratio(t, floors):8.2f} {beside}")


if __name__ == "__main__":
    main()
