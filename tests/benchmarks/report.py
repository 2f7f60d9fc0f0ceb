"""What a report costs: `python tests/benchmarks/report.py [OUT]`, 1,000 points x 5 seeds x 100 reports of 20 metrics.

Writes the synthetic sweep into OUT (default: a folder that is removed), runs the command on it in a process of its own,
and prints its seconds, its peak memory and the size of the page.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from offrl_ray.records import FILE
from tests.synthetic import Record, Run, sweep, write

AXES = {"algo.alpha": [0.01 * k for k in range(20)], "algo.q_grad_mode": [f"last_{k}" for k in range(1, 11)]}
AXES |= {"algo.lr": [10.0**-k for k in range(1, 6)]}  # five heatmaps of 200 cells
OTHERS = {f"metric_{i}": (lambda at, i=i: i * at + 0.123456789) for i in range(17)}
SCRIPT = Path(__file__).parents[2] / "results_analysis" / "report.py"


def make(point: Record, seed: int) -> Run:
    grows = point["algo.alpha"] > 0.18 and seed == 0
    q = (lambda at: 0.05 * 10 ** (4 * at)) if grows else (lambda at: 0.05 * at)
    known = {"q_policy_mean": q, "q_bound_high": lambda at: 0.1, "critic_loss": lambda at: 1e-3 * (2 - at)}
    return Run(0.3 + point["algo.alpha"], OTHERS | known, stopped=0.5 if grows else None)


def main(folder: Path) -> None:
    if not (folder / FILE).exists():
        write(folder, sweep(make, AXES, reports=100, evals=5))
    begin = time.perf_counter()
    subprocess.run([sys.executable, SCRIPT, folder, "--out", folder / "report.html"], check=True)
    seconds = time.perf_counter() - begin
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    size = (folder / "report.html").stat().st_size / 2**20
    print(f"{seconds:.1f} s, {memory:.0f} MiB, page {size:.1f} MiB")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
