"""The three sizes that the LiftPegUpright-v1 sweeps have in common."""

from collections.abc import Mapping
from typing import Any

from offrl_ray.sweep.plan import Demos, Preset, Resources

PEG = "LiftPegUpright-v1"


def lift_peg(
    small: Mapping[str, Any], tiny: Mapping[str, Any], full: Mapping[str, Any], takes: str
) -> dict[str, Preset]:
    """Presets smoke (`tiny` on top of `small`), quick (`small`, which `takes` so long) and full (`full` alone)."""
    seconds = {"train.steps": 20, "train.report_every": 10, "train.seeds": [0, 1]}
    seconds |= {"eval.every": 20, "eval.episodes": 1, "env.max_steps": 16}
    minutes = {"train.steps": 2000, "train.report_every": 250, "train.seeds": [0, 1], "train.batch_size": 64}
    minutes |= {"eval.every": 1000, "eval.episodes": 20}
    hours = {"train.device": "cuda", "train.seeds": [0, 1, 2, 3, 4], "train.batch_size": 256, "train.steps": 30_000}
    hours |= {"eval.every": 2000, "eval.episodes": 100, "env.sim_backend": "physx_cuda", "env.num_envs": 50}
    return {
        "smoke": Preset(
            about="all points, seconds of training: does everything work?",
            demos=Demos(env_id=PEG, episodes=8, noise=(0.0, 0.1)),
            overrides={**minutes, **small, **seconds, **tiny},
        ),
        "quick": Preset(
            about=f"two CPU cores, {takes}",
            demos=Demos(env_id=PEG, episodes=200, noise=(0.0, 0.05, 0.1)),
            overrides={**minutes, **small},
            resources=Resources(evaluators=2),
        ),
        "full": Preset(
            about="GPUs: the documents' networks, batch 256, 30,000 updates, 100 episodes in 50 parallel environments",
            demos=Demos(env_id=PEG, episodes=1000, noise=(0.0, 0.1, 0.1, 0.3)),
            overrides={**hours, **full},
            resources=Resources(gpus_per_trial=0.25, evaluators=None, cpus_per_evaluator=1, gpus_per_evaluator=0.25),
        ),
    }
