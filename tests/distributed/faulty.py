"""A sweep script whose processes fail as they are told: FAULTS='{"code": [0.002]}' python faulty.py --out OUT.

FAULTS tells each kind of fault the learning rates of the trials that meet it. Defined here and not in a module that
workers import, the classes travel to Ray's workers as they are.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from offrl_ray.sweep.plan import Demos, Preset, Sweep

FAULTS: dict[str, list[float]] = json.loads(os.environ.get("FAULTS", "{}"))
RATES: list[float] = json.loads(os.environ.get("RATES", "[0.001, 0.002]"))
STEPS, REPORT_EVERY, EVAL_EVERY = 400, 10, 100
PACE_SECONDS = 0.1  # after every report, so that there is something to interrupt

SWEEP = Sweep(
    name="faulty",
    question="What does a fault cost?",
    variant="cql_dqn",
    axes={"algo.lr": RATES},
    presets={
        "smoke": Preset(
            about="seconds",
            demos=Demos(env_id="CartPole-v1", episodes=10, control_mode="native", reward_mode="native"),
            overrides={"algo.hidden": [16], "train.steps": STEPS, "train.report_every": REPORT_EVERY}
            | {"train.seeds": [0, 1], "eval.every": EVAL_EVERY, "eval.episodes": 2, "env.num_envs": 2}
            | {"env.max_steps": 20},
        )
    },
)


def meets(fault: str, cfg: Any) -> bool:
    return cfg.algo.lr in FAULTS.get(fault, [])


def fail(job: Any, step: int) -> None:
    """What happens to a trial at the pause of a step."""
    first = job.attempt == 1
    if step < EVAL_EVERY + REPORT_EVERY:
        return
    if meets("code", job.cfg):
        raise RuntimeError("poisoned")
    if meets("stuck", job.cfg) or (meets("hang", job.cfg) and first):
        time.sleep(1000)
    if meets("oom", job.cfg) and first:
        raise MemoryError("the batch did not fit")
    if meets("gpu", job.cfg) and first:
        raise torch.AcceleratorError("CUDA error: the GPU is lost")
    if meets("disk", job.cfg):
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))


def main() -> int:
    from offrl_ray.distributed import launch, session

    session.apply_settings()  # before Ray is imported, which the classes below need
    from offrl_ray.distributed import evaluators, fit, trainable

    class FaultyTrial(trainable.Trial):
        def _run(self, job: Any, folder: Path) -> Iterator[Any]:
            with closing(super()._run(job, folder)) as updates:
                for update in updates:
                    yield update
                    time.sleep(PACE_SECONDS)
                    fail(job, update.step)

    class FaultyActor(evaluators.RolloutActor):
        def evaluate(self, request: Any) -> Any:
            from offrl_ray.envs.classic import GymEnv

            if meets("crash", request.cfg):
                GymEnv.step = lambda self, action: os.abort()
            return super().evaluate(request)

    fit.Trial, evaluators.RolloutActor = FaultyTrial, FaultyActor
    return launch.main(SWEEP, ["--preset", "smoke", "--fresh", *sys.argv[1:]])


if __name__ == "__main__":
    raise SystemExit(main())
