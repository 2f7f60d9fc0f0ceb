"""DQC: optimism of V (kappa_b) x length of the scored chunk (q_horizon): does decoupling the two horizons help?"""

from offrl_ray.distributed.launch import main
from offrl_ray.sweep.plan import Sweep
from offrl_ray.sweep.sizes import lift_peg

SMALL = {
    "data.pred_horizon": 8,
    "algo.lr": 2e-3,
    "algo.ema_decay": 0.99,
    "algo.network.width": 128,
    "algo.network.blocks": 2,
    "algo.critic_hidden": [128, 128],
}

SWEEP = Sweep(
    name="dqc",
    question="DQC: does it help to score longer chunks (q_horizon) than the 8 actions that are executed, "
    "and to be optimistic (kappa_b)?",
    variant="dqc",
    axes={
        "algo.kappa_b": [0.5, 0.7, 0.9],
        "data.q_horizon": [8, 16, 24],
    },
    presets=lift_peg(
        SMALL,
        tiny={"algo.network.width": 32, "algo.critic_hidden": [32], "algo.num_samples": 2},
        full={"algo.network.kind": "unet", "algo.critic_hidden": [512, 512, 512], "algo.ema_decay": 0.999},
        takes="a quarter of an hour",
    ),
)

if __name__ == "__main__":
    raise SystemExit(main(SWEEP))
