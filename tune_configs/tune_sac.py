"""Offline SAC: actor_loss x init_temperature, the question of seed document 002."""

from offrl_ray.distributed.launch import main
from offrl_ray.sweep.plan import Sweep
from offrl_ray.sweep.sizes import lift_peg

SMALL = {
    "algo.hidden": [128, 128],
    "algo.critic_hidden": [128, 128],
    "algo.num_critics": 5,
    "algo.lr": 1e-3,
}

SWEEP = Sweep(
    name="sac",
    question="Offline SAC: which actor loss works, and does the entropy term (init_temperature) drown the data?",
    variant="sac",
    axes={
        "algo.actor_loss": ["sac", "td3bc", "awr", "iql"],
        "algo.init_temperature": [0.01, 0.1, 1.0],
    },
    presets=lift_peg(
        SMALL,
        tiny={"algo.hidden": [32], "algo.critic_hidden": [32]},
        full={},
        takes="a quarter of an hour",
    ),
)

if __name__ == "__main__":
    raise SystemExit(main(SWEEP))
