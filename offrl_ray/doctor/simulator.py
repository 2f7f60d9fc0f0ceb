"""Does ManiSkill really step here, and could it render? In processes of their own, because SAPIEN may crash.

Run as a module it is such a process.
"""

import json
import signal
import subprocess
import sys
import time
from typing import Any

from offrl_ray.doctor import machine
from offrl_ray.doctor.check import Check, fail, ok, warn

TASK = "PushCube-v1"
STEPS = 20
SECONDS = 120.0


def simulators() -> list[Check]:
    backends = ["physx_cpu", *(["physx_cuda"] if machine.cards() else [])]
    found = [stepping(b) for b in backends]
    renders = next((f["renders"] for f in found if "renders" in f), None)
    checks = [judge(b, f) for b, f in zip(backends, found, strict=True)]
    if renders is not None:
        checks.append(ok("renderer", "SAPIEN can render" if renders else "none; states and physics need none"))
    return checks


def stepping(backend: str) -> dict[str, Any]:
    """What the process found, or why it did not: {"renders", "speed"} or {"failed"}."""
    command = [sys.executable, "-m", "offrl_ray.doctor.simulator", backend]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return {"failed": f"no step within {SECONDS:g} s"}
    if done.returncode < 0:
        return {"failed": f"SAPIEN crashed with {signal.Signals(-done.returncode).name}"}
    try:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, ValueError):
        lines = done.stderr.strip().splitlines()
        return {"failed": lines[-1] if lines else f"exit code {done.returncode}, without a word"}


def judge(backend: str, found: dict[str, Any]) -> Check:
    if "speed" in found:
        return ok(backend, f"{TASK} takes {found['speed']:.0f} steps a second in one environment")
    if backend == "physx_cuda":
        why = f"{TASK} does not step: {found['failed']}"
        return warn(backend, why, "evaluate with --set env.sim_backend=physx_cpu --set env.num_envs=1")
    mend = "pip install --constraint constraints.txt --force-reinstall mani_skill sapien"
    if "libGL" in str(found.get("failed")):
        mend = "apt-get install libgl1 libglib2.0-0 libvulkan1 libxext6, what the simulator links to"
    return fail(backend, f"{TASK} does not step: {found['failed']}", mend)


def main(backend: str) -> None:
    import torch

    from offrl_ray.envs import maniskill

    renders = not maniskill.load()
    env = maniskill.ManiSkillEnv(TASK, sim_backend=backend)
    env.reset([0])
    start = time.monotonic()
    for _ in range(STEPS):
        env.step(torch.zeros(1, env.action_dim))
    print(json.dumps({"renders": renders, "speed": STEPS / (time.monotonic() - start)}))


if __name__ == "__main__":
    main(sys.argv[1])
