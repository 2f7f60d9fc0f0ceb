"""CPQL: alpha x q_grad_mode, the question of seed document 000."""

from offrl_ray.distributed.launch import main
from offrl_ray.sweep.plan import Sweep
from offrl_ray.sweep.sizes import lift_peg

SMALL = {
    "data.pred_horizon": 8,
    "algo.lr": 2e-3,
    "algo.consistency_weight": 0.3,
    "algo.ema_decay": 0.99,
    "algo.warmup_steps": 100,
    "algo.network.width": 128,
    "algo.network.blocks": 2,
    "algo.critic_hidden": [128, 128],
}

SWEEP = Sweep(
    name="cpql",
    question="CPQL: what do the weight of the Q term (alpha) and the length of its gradient chain (q_grad_mode) do?",
    variant="cpql",
    axes={
        "algo.alpha": [0.0, 0.01, 0.05, 0.2],
        "algo.q_grad_mode": ["single_step", "last_5", "whole_grad"],
    },
    presets=lift_peg(
        SMALL,
        tiny={"algo.network.width": 32, "algo.critic_hidden": [32]},
        full={"algo.network.kind": "unet", "algo.critic_hidden": [512, 512, 512]},
        takes="a quarter of an hour",
    ),
)

if __name__ == "__main__":
    raise SystemExit(main(SWEEP))
