"""Packs trials on a Ray of 2 CPUs and 1 GPU that is one in name alone, and prints what came of it as JSON.

python packs.py FILE.h5
"""

import dataclasses
import json
import sys
from typing import Any

from offrl_ray.distributed import launch, session
from offrl_ray.sweep.plan import Demos, Preset, Resources, Sweep, plan
from tests.conftest import TINY

SWEEP = Sweep(
    name="packed",
    question="How many?",
    variant="cpql",
    axes={"algo.alpha": [0.1], "algo.q_grad_mode": ["single_step", "whole_grad"]},
    presets={"tiny": Preset(about="", overrides=TINY, demos=Demos(env_id="Toy-v1", episodes=1))},
)
BASE = Resources(gpus_per_trial=0.5, evaluators=1, gpus_per_evaluator=0.25)
SECONDS = 30


def main() -> None:
    session.apply_settings()  # before Ray is imported
    session._ensure_token()
    import ray

    from offrl_ray.distributed import pack

    pack.MEASURE_SECONDS = 1
    ray.init("local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    loaded, work = launch.load(plan(SWEEP, "tiny", {}, [sys.argv[1]]))

    def packed(**changes: Any) -> pack.Packing:
        return pack.pack(work, loaded, dataclasses.replace(BASE, **changes), print)

    found = packed(pack="auto")
    r = found.resources
    holder = ray.remote(Holder)
    held = [holder.options(num_cpus=0, num_gpus=BASE.gpus_per_evaluator).remote()]
    trial = holder.options(num_cpus=r.cpus_per_trial, num_gpus=r.gpus_per_trial)
    count = round(0.75 / r.gpus_per_trial)
    held += [trial.remote() for _ in range(count)]
    ready, _ = ray.wait([h.ready.remote() for h in held], num_returns=len(held), timeout=SECONDS)
    more, _ = ray.wait([trial.remote().ready.remote()], timeout=1)
    for h in held:
        ray.kill(h)
    result = {"shares": [r.cpus_per_trial, r.gpus_per_trial], "told": found.told, "slots": found.slots, "count": count}
    result |= {"beside_evaluator": len(ready) - 1, "more": len(more), "probes": [p.memory for p in found.probes if p]}
    result["cpu"] = packed(pack="2", gpus_per_trial=0, gpus_per_evaluator=0).resources.cpus_per_trial
    print(json.dumps(result))


class Holder:
    def ready(self) -> None: ...


if __name__ == "__main__":
    main()
