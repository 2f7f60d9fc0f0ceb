"""AWCP: beta x baseline, does weighting the data by its advantage help, and which advantage?"""

from offrl_ray.distributed.launch import main
from offrl_ray.sweep.plan import Sweep
from offrl_ray.sweep.sizes import lift_peg

SMALL = {
    "data.pred_horizon": 8,
    "algo.lr": 2e-3,
    "algo.ema_decay": 0.99,
    "algo.warmup_steps": 100,
    "algo.network.width": 128,
    "algo.network.blocks": 2,
    "algo.critic_hidden": [128, 128],
}

SWEEP = Sweep(
    name="awcp",
    question="AWCP: how sharply should data be weighted by its advantage (beta), over the batch or within a state?",
    variant="awcp",
    axes={
        "algo.beta": [0.0, 1.0, 10.0, 50.0],
        "algo.baseline": ["batch_mean", "value"],
    },
    presets=lift_peg(
        SMALL,
        tiny={"algo.network.width": 32, "algo.critic_hidden": [32]},
        full={"algo.network.kind": "unet", "algo.critic_hidden": [512, 512, 512]},
        takes="less than a quarter of an hour",
    ),
)

if __name__ == "__main__":
    raise SystemExit(main(SWEEP))
