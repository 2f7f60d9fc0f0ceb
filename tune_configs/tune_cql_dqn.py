"""Discrete CQL on CartPole: the conservative weight, the question of seed document 001."""

from offrl_ray.distributed.launch import main
from offrl_ray.sweep.plan import Demos, Preset, Resources, Sweep


def lived_through(episodes: int) -> Demos:
    return Demos(env_id="CartPole-v1", episodes=episodes, control_mode="native", reward_mode="native")


SWEEP = Sweep(
    name="cql_dqn",
    question="CQL-DQN: as cql_alpha goes to 0, does Q grow while the return does not, and is about 1 best?",
    variant="cql_dqn",
    axes={"algo.cql_alpha": [0.0, 0.1, 0.5, 1.0, 2.0, 5.0]},
    presets={
        "smoke": Preset(
            about="all points, seconds of training: does everything work?",
            demos=lived_through(10),
            overrides={"algo.hidden": [16], "train.steps": 20, "train.report_every": 10, "train.seeds": [0, 1]}
            | {"eval.every": 20, "eval.episodes": 2, "env.num_envs": 2, "env.max_steps": 20},
        ),
        "quick": Preset(
            about="two CPU cores, a few minutes: the document's 800 updates, judged every 10 on 5 episodes",
            demos=lived_through(200),
            overrides={"train.seeds": [0, 1, 2, 3, 4], "train.report_every": 10, "eval.every": 10},
            resources=Resources(evaluators=2),
        ),
        "full": Preset(
            about="two CPU cores, an hour: ten times the updates, twice the seeds, four times the episodes",
            demos=lived_through(200),
            overrides={"train.seeds": list(range(10)), "train.steps": 8000, "train.report_every": 50}
            | {"eval.every": 50, "eval.episodes": 20, "env.num_envs": 20},
            resources=Resources(evaluators=2),
        ),
    },
)

if __name__ == "__main__":
    raise SystemExit(main(SWEEP))
