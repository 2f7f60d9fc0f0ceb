"""RLPD: critic updates per step, ensemble size and share of demonstrations, the question of seed document 003."""

from offrl_ray.distributed.launch import main
from offrl_ray.sweep.plan import Demos, Preset, Resources, Sweep

PUSH = Demos(env_id="PushCube-v1", episodes=20, noise=(0.0,))
SMALL = {
    "algo.gamma": 0.95,
    "algo.hidden": [128, 128],
    "algo.critic_hidden": [128, 128],
    "algo.init_temperature": 0.02,
    "algo.lr_temperature": 1e-3,
    "train.batch_size": 64,
    "online.start_steps": 500,
}

SWEEP = Sweep(
    name="rlpd",
    question="RLPD: what do critic updates per step (cta_ratio), the ensemble and the share of demonstrations buy?",
    variant="rlpd",
    axes={
        "algo.cta_ratio": [1, 4],
        "online.demo_ratio": [0.0, 0.5],
        "algo.num_critics": [2, 4],
    },
    presets={
        "smoke": Preset(
            about="all points, seconds of training: does everything work?",
            demos=Demos(env_id="PushCube-v1", episodes=4, noise=(0.0,)),
            overrides=SMALL
            | {"algo.hidden": [32], "algo.critic_hidden": [32], "online.start_steps": 20, "train.batch_size": 16}
            | {"train.steps": 20, "train.report_every": 10, "train.seeds": [0, 1]}
            | {"eval.every": 20, "eval.episodes": 1, "env.max_steps": 16},
        ),
        "quick": Preset(
            about="two CPU cores, about half an hour: 4,500 environment steps per seed",
            demos=PUSH,
            overrides=SMALL
            | {"train.steps": 4000, "train.report_every": 250, "train.seeds": [0, 1]}
            | {"eval.every": 1000, "eval.episodes": 20},
            resources=Resources(evaluators=2),
        ),
        "full": Preset(
            about="GPUs: batch 256, 3 x 256 nets of the paper, 100,000 environment steps per seed",
            demos=Demos(env_id="PushCube-v1", episodes=100, noise=(0.0, 0.1)),
            overrides={"algo.gamma": 0.95, "train.device": "cuda", "train.seeds": [0, 1, 2, 3, 4]}
            | {"train.batch_size": 256, "train.steps": 100_000, "eval.every": 5000, "eval.episodes": 100},
            resources=Resources(gpus_per_trial=0.25, evaluators=2, cpus_per_evaluator=1),
        ),
    },
)

if __name__ == "__main__":
    raise SystemExit(main(SWEEP))
