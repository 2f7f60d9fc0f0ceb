"""CQL: the conservative weight, the question of seed documents 001 and 004."""

from offrl_ray.distributed.launch import main
from offrl_ray.sweep.plan import Sweep
from offrl_ray.sweep.sizes import lift_peg

SMALL = {
    "algo.lr": 3e-4,
    "algo.init_temperature": 0.1,
    "algo.hidden": [128, 128],
    "algo.critic_hidden": [128, 128],
    "algo.num_samples": 4,
}

SWEEP = Sweep(
    name="cql",
    question="CQL: what does the conservative weight (cql_alpha) do to the values and to the return?",
    variant="cql",
    axes={"algo.cql_alpha": [0.0, 0.1, 0.5, 1.0, 5.0, 10.0]},
    presets=lift_peg(
        SMALL,
        tiny={"algo.hidden": [32], "algo.critic_hidden": [32]},
        full={},
        takes="ten minutes",
    ),
)

if __name__ == "__main__":
    raise SystemExit(main(SWEEP))
