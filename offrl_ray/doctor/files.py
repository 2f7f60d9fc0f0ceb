"""Where results, checkpoints and demonstrations go, and a trajectory file."""

import shutil
import tempfile
from pathlib import Path

import platformdirs

from offrl_ray.doctor.check import Check, GiB, fail, ok, warn

LOW, NONE = 5 * GiB, GiB // 2


def is_url(place: str) -> bool:
    return "://" in place


def existing(place: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    place = place.absolute()
    return next(p for p in (place, *place.parents) if p.exists())


def disks(out: str) -> list[Check]:
    return [
        results(out) if is_url(out) else disk("results", Path(out)),
        disk("cache", platformdirs.user_cache_path("offrl-ray")),
    ]


def results(url: str) -> Check:
    from offrl_ray.store import place, store

    at = store(place(url))
    problems = at.problems() if at else []
    if problems:
        return fail("results", problems[0], "the bucket's name, credentials in the environment, the network")
    return ok("results", f"{url} can be written to")


def disk(name: str, place: Path) -> Check:
    folder = existing(place)
    try:
        with tempfile.TemporaryFile(dir=folder) as f:
            f.write(b"offrl-ray")
    except OSError as e:
        return fail(name, f"{folder} cannot be written to: {e.strerror}", "choose another folder, or make room there")
    free = shutil.disk_usage(folder).free
    found = f"{free / GiB:.1f} GiB free in {folder}"
    if free < NONE:
        return fail(name, found, "make room, or choose another disk; a sweep without room saves itself and ends")
    if free < LOW:
        return warn(name, found, "make room; --keep-top 5 --keep-bytes 1G bound a sweep's checkpoints")
    return ok(name, found)


def trajectories(path: Path) -> list[Check]:
    """In the modes that the file itself names."""
    from offrl_ray.data import hdf5

    found = hdf5.inspect(path, control_mode=None, reward_mode=None)
    if found.problems:
        return [fail("data", problem) for problem in found.problems]
    about = found.summary()
    modes = ", ".join(str(about[k]) for k in ("env_id", "control_mode", "reward_mode", "sim_backend"))
    return [ok("data", f"{path}: {about['episodes']} episodes of {modes}, {about['success_rate']:.0%} succeed")]
