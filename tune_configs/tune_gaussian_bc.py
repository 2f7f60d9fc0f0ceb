"""Gaussian BC: loss x lr, is the policy network of offline SAC to blame? (claim S9 of seed document 002)"""

from offrl_ray.distributed.launch import main
from offrl_ray.sweep.plan import Sweep
from offrl_ray.sweep.sizes import lift_peg

SMALL = {"algo.hidden": [128, 128]}

SWEEP = Sweep(
    name="gaussian_bc",
    question="Gaussian BC: how far does offline SAC's policy network come alone, by squared error or by likelihood?",
    variant="gaussian_bc",
    axes={
        "algo.loss": ["mse", "nll"],
        "algo.lr": [3e-4, 1e-3, 3e-3],
    },
    presets=lift_peg(
        SMALL,
        tiny={"algo.hidden": [32]},
        full={},
        takes="minutes",
    ),
)

if __name__ == "__main__":
    raise SystemExit(main(SWEEP))
