"""What an update, a batch and a stack of seeds cost here: `make bench`, or with a sweep's folder what Ray Tune added.

python tests/benchmarks/bench.py [SWEEP_FOLDER]
"""

import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from offrl_ray import records
from offrl_ray.algos import make
from offrl_ray.algos.functional import select, stack
from offrl_ray.config import RunConfig, resolve
from offrl_ray.data.dataset import Dataset, build, nbytes
from offrl_ray.data.hdf5 import Episode
from offrl_ray.fields import hparams
from offrl_ray.train import start, train

QUICK = {
    "algo.name": "cpql",
    "data.files": ["none"],
    "data.pred_horizon": 8,
    "algo.network.width": 128,
    "algo.network.blocks": 2,
    "algo.critic_hidden": [128, 128],
    "train.batch_size": 64,
}


def milliseconds(f: Callable[[], object], repeats: int) -> float:
    """Median time of a call, after two that are not counted."""
    times = []
    for i in range(repeats + 2):
        began = time.perf_counter()
        f()
        times.append(time.perf_counter() - began if i >= 2 else None)
    return 1e3 * statistics.median(t for t in times if t is not None)


def dataset(episodes: int = 200, steps: int = 50) -> Dataset:
    rng = np.random.default_rng(0)
    flags = np.arange(steps) == steps - 1
    data = [
        Episode(
            f"traj_{i}",
            {"state": rng.standard_normal((steps + 1, 32), np.float32)},
            rng.uniform(-1, 1, (steps, 7)).astype(np.float32),
            flags.astype(np.float32),
            *(flags, flags, np.zeros(steps, bool)),
        )
        for i in range(episodes)
    ]
    sizes = {"obs_horizon": 2, "act_horizon": 8, "pred_horizon": 8}
    arrays, spec = build([data], control_mode="pd_ee_delta_pose", **sizes)
    print(f"data set: {len(data)} episodes, {nbytes(arrays) / 2**20:.1f} MiB, once per node")
    return Dataset(arrays, spec)


def updates(cfg: RunConfig, data: Dataset, members: int) -> Callable[[], object]:
    alg = make(cfg.algo, data.spec)
    g = [torch.Generator().manual_seed(i) for i in range(members)]
    states = stack([alg.init(x) for x in g])
    batch = data.batch(torch.stack([data.draw(x, cfg.train.batch_size) for x in g]))
    noise = stack([alg.update_noise(x, cfg.train.batch_size) for x in g])
    hp = hparams(cfg.algo)
    if members > 1:
        return lambda: torch.vmap(alg.update, in_dims=(0, 0, 0, None))(states, batch, noise, hp)
    one = batch._replace(**{k: select(v, 0) if isinstance(v, dict) else v[0] for k, v in batch._asdict().items()})
    return lambda: alg.update(select(states, 0), one, select(noise, 0), hp)


def equality(data: Dataset) -> float:
    """Largest relative difference of any weight between seeds in a stack and alone, after 20 updates."""
    worst = 0.0
    base = QUICK | {"train.steps": 20, "train.report_every": 20, "eval.every": 20, "algo.alpha": 0.05}
    together = resolve(base | {"train.seeds": [0, 1, 2]})
    alg = make(together.algo, data.spec)
    *_, stacked = train(together, alg, data, start(together, alg))
    for i in range(3):
        alone = resolve(base | {"train.seeds": [i]})
        *_, single = train(alone, alg, data, start(alone, alg))
        for name in ("policy", "critic"):
            for key, value in single.snapshot.state[name].items():
                other = stacked.snapshot.state[name][key][i]
                worst = max(worst, float((other - value[0]).norm() / value[0].norm().clamp_min(1e-8)))
    return worst


def overhead(folder: str) -> None:
    ends = [r for r in records.read(folder).records if r["kind"] == "end" and r["cost"]]
    for r in ends:
        c = r["cost"]
        beyond = c["wall_seconds"] - c["train_seconds"] - min(c["wait_seconds"], c["final_eval_seconds"])
        print(
            f"{r['trial']:45} wall {c['wall_seconds']:6.1f} s, training {c['train_seconds']:6.1f}, last evaluation "
            f"{c['final_eval_seconds']:5.1f}, beyond {beyond:5.1f} s = {100 * beyond / c['wall_seconds']:4.1f} %, "
            f"peak {c['peak_bytes'] / 2**20:.0f} MiB, private {c['private_bytes'] / 2**20:.0f} MiB"
        )
    wall = sum(r["cost"]["wall_seconds"] for r in ends)
    waits = [min(r["cost"]["wait_seconds"], r["cost"]["final_eval_seconds"]) for r in ends]
    train_seconds = sum(r["cost"]["train_seconds"] for r in ends)
    print(f"all trials: {100 * (wall - train_seconds - sum(waits)) / wall:.1f} % beyond training and evaluation")


def main() -> None:
    if len(sys.argv) > 1:
        overhead(sys.argv[1])
        return
    torch.set_num_threads(1)
    data = dataset()
    g = torch.Generator().manual_seed(0)
    print(f"batch of 256 chunks: {milliseconds(lambda: data.batch(data.draw(g, 256)), 500):.3f} ms")
    print(f"stacked and single weights differ by at most {equality(data):.1e} (relative) after 20 updates")
    for mode in ("single_step", "last_5", "whole_grad"):
        cfg = resolve(QUICK | {"algo.q_grad_mode": mode})
        single = milliseconds(updates(cfg, data, 1), 20)
        row = [f"1: {single:.1f} ms"]
        for members in (2, 4, 8):
            t = milliseconds(updates(cfg, data, members), 10)
            row.append(f"{members}: {t:.1f} ms ({t / (members * single):.2f} of as many single ones)")
        print(f"update, {mode:11} members {', '.join(row)}")


if __name__ == "__main__":
    main()
