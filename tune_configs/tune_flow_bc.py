"""Flow BC: num_flow_steps x ema_decay, the baseline without rewards that seed document 002 lacks."""

from offrl_ray.distributed.launch import main
from offrl_ray.sweep.plan import Sweep
from offrl_ray.sweep.sizes import lift_peg

SMALL = {
    "data.pred_horizon": 8,
    "algo.lr": 2e-3,
    "algo.warmup_steps": 100,
    "algo.network.width": 128,
    "algo.network.blocks": 2,
}

SWEEP = Sweep(
    name="flow_bc",
    question="Flow BC: does a flow (num_flow_steps) beat the mean action (one step), and how long may the EMA be?",
    variant="flow_bc",
    axes={
        "algo.num_flow_steps": [1, 2, 10],
        "algo.ema_decay": [0.9, 0.99, 0.999],
    },
    presets=lift_peg(
        SMALL,
        tiny={"algo.network.width": 32},
        full={"algo.network.kind": "unet"},
        takes="less than a quarter of an hour",
    ),
)

if __name__ == "__main__":
    raise SystemExit(main(SWEEP))
