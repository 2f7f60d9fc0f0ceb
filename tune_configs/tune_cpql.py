"""CPQL: alpha x q_grad_mode, the question of seed document 000."""

from offrl_ray.distributed.launch import main
from offrl_ray.sweep.plan import Demos, Preset, Resources, Sweep

PEG = "LiftPegUpright-v1"
SMALL = {
    "data.pred_horizon": 8,
    "algo.lr": 2e-3,
    "algo.consistency_weight": 0.3,
    "algo.ema_decay": 0.99,
    "algo.warmup_steps": 100,
    "algo.network.width": 128,
    "algo.network.blocks": 2,
    "algo.critic_hidden": [128, 128],
    "train.batch_size": 64,
}

SWEEP = Sweep(
    name="cpql",
    question="CPQL: what do the weight of the Q term (alpha) and the length of its gradient chain (q_grad_mode) do?",
    variant="cpql",
    axes={
        "algo.alpha": [0.0, 0.01, 0.05, 0.2],
        "algo.q_grad_mode": ["single_step", "last_5", "whole_grad"],
    },
    presets={
        "smoke": Preset(
            about="all points, seconds of training: does everything work?",
            demos=Demos(env_id=PEG, episodes=8, noise=(0.0, 0.1)),
            overrides=SMALL
            | {"algo.network.width": 32, "algo.critic_hidden": [32], "train.steps": 20, "train.report_every": 10}
            | {"train.seeds": [0, 1], "eval.every": 20, "eval.episodes": 1, "env.max_steps": 16},
        ),
        "quick": Preset(
            about="two CPU cores, a quarter of an hour",
            demos=Demos(env_id=PEG, episodes=200, noise=(0.0, 0.05, 0.1)),
            overrides=SMALL
            | {"train.steps": 2000, "train.report_every": 250, "train.seeds": [0, 1]}
            | {"eval.every": 1000, "eval.episodes": 20},
            resources=Resources(evaluators=2),
        ),
        "full": Preset(
            about="GPUs: the seed's U-Net, batch 256, 30,000 updates, 100 episodes in 50 parallel environments",
            demos=Demos(env_id=PEG, episodes=1000, noise=(0.0, 0.1, 0.1, 0.3)),
            overrides={"algo.network.kind": "unet", "algo.critic_hidden": [512, 512, 512], "train.device": "cuda"}
            | {"train.seeds": [0, 1, 2, 3, 4], "train.batch_size": 256, "train.steps": 30_000, "eval.every": 2000}
            | {"eval.episodes": 100, "env.sim_backend": "physx_cuda", "env.num_envs": 50},
            resources=Resources(gpus_per_trial=0.25, evaluators=1, cpus_per_evaluator=1, gpus_per_evaluator=0.25),
        ),
    },
)

if __name__ == "__main__":
    raise SystemExit(main(SWEEP))
