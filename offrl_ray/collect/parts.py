"""ManiSkill's replayer in processes of its own, each with a share of the episodes: SAPIEN may crash."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from offrl_ray.collect.raw import Raw, Taken

CPU = "physx_cpu"
GPU_ENVS = 64
TOLD_EVERY = 5.0  # seconds


class Ask(NamedTuple):
    """What a raw file is to become."""

    control_mode: str = "pd_ee_delta_pose"
    reward_mode: str = "sparse"
    sim_backend: str = CPU
    episodes: int | None = None  # the first so many
    workers: int | None = None  # processes; the file does not depend on them
    only_successes: bool = False


class ReplayError(RuntimeError):
    """The replayer failed, or what it made is no data; nothing was written."""


class Part(NamedTuple):
    """What one process replays; it works in a folder of its own, beside a link to the raw file."""

    folder: Path
    taken: Sequence[Taken]

    def result(self) -> tuple[Path, list[dict[str, Any]]]:
        """The .json that the replayer has written so far, with its episodes. Raises ReplayError if there is none."""
        for path in self.folder.glob("raw.*.json"):
            return path, json.loads(path.read_text())["episodes"]
        raise ReplayError("ManiSkill's replayer has written nothing")

    def done(self) -> int:
        """Episodes so far."""
        try:
            return len(self.result()[1])
        except (ReplayError, ValueError):  # not begun, or just being written
            return 0


def run(raw: Raw, taken: Sequence[Taken], ask: Ask, work: Path, progress: Callable[[str], None]) -> list[Part]:
    """Replay episodes within the folder `work`. Raises ReplayError."""
    number = min(ask.workers or os.cpu_count() or 1, len(taken)) if ask.sim_backend == CPU else 1
    bounds = [len(taken) * i // number for i in range(number + 1)]
    parts = [Part(work / str(i), taken[bounds[i] : bounds[i + 1]]) for i in range(number)]
    processes = [_start(raw, ask, part) for part in parts]
    try:
        shown = time.monotonic()
        while any(p.poll() is None for p in processes) and not any(p.returncode for p in processes):
            time.sleep(0.1)
            if time.monotonic() - shown >= TOLD_EVERY:
                shown = time.monotonic()
                progress(f"{sum(part.done() for part in parts)}/{len(taken)} episodes replayed")
    finally:
        codes = [p.returncode for p in processes]
        for p in processes:
            p.kill()
            p.wait()
    for code, part in zip(codes, parts, strict=True):
        if code:
            ended = f"exit code {code}" if code > 0 else signal.Signals(-code).name
            lines = (part.folder / "log").read_text(errors="replace").strip().splitlines()[-5:]
            raise ReplayError("\n".join([f"ManiSkill's replayer failed ({ended}):", *lines]))
    return parts


def _start(raw: Raw, ask: Ask, part: Part) -> "subprocess.Popen[bytes]":
    part.folder.mkdir()
    (part.folder / "raw.h5").symlink_to(raw.path.resolve())
    (part.folder / "raw.json").write_text(json.dumps(_metadata(raw, ask, part.taken)))
    same = (raw.control_mode, CPU) == (ask.control_mode, ask.sim_backend)
    states = "--use-env-states" if same and raw.sim_backend != CPU else "--use-first-env-state"
    envs = 1 if ask.sim_backend == CPU else min(len(part.taken), GPU_ENVS)
    asked = ["-o", "state", "-c", ask.control_mode, "-b", ask.sim_backend, "--reward-mode", ask.reward_mode]
    fixed = ["--record-rewards", "--save-traj", "--allow-failure", "--render-mode", "none", "--num-envs", str(envs)]
    command = [sys.executable, "-m", "offrl_ray.collect.replayer", "--traj-path", str(part.folder / "raw.h5"), states]
    with (part.folder / "log").open("wb") as log:
        return subprocess.Popen([*command, *asked, *fixed], stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def _metadata(raw: Raw, ask: Ask, taken: Sequence[Taken]) -> dict[str, Any]:
    """A .json of our own for the replayer, which builds what it is told there."""
    cpu = ask.sim_backend == CPU  # there a rebuilt scene makes an episode independent of those before
    kwargs = {"control_mode": raw.control_mode, "render_backend": "none"}
    episodes = [
        {
            "episode_id": e.id,
            "episode_seed": e.seed,
            "control_mode": raw.control_mode,
            "elapsed_steps": e.steps,
            "reset_kwargs": {"seed": e.seed, "options": {"reconfigure": cpu}},
        }
        for e in taken
    ]
    info = {"env_id": raw.env_id, "env_kwargs": kwargs, "max_episode_steps": max(e.steps for e in taken)}
    return {"env_info": info, "episodes": episodes}
