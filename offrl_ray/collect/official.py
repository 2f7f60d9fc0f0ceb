"""Official demonstrations: ManiSkill's own downloader into its own cache, then a replay of the file that fits best."""

import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit
from zipfile import BadZipFile

from offrl_ray.collect.files import out_problems
from offrl_ray.collect.parts import Ask
from offrl_ray.collect.raw import FROM
from offrl_ray.collect.replayed import Summary, replay
from offrl_ray.data import hdf5
from offrl_ray.data.guard import Problems
from offrl_ray.envs import maniskill
from offrl_ray.envs.experts import EXPERTS
from offrl_ray.errors import DiskFull, UsageError, did_you_mean

SOURCES = ("rl", "motionplanning", "teleop")
"""Folders of a download, the better first: policies act in the wanted control mode, planners move two times longer."""
PATIENCE = 20.0  # seconds without a byte


class FetchError(RuntimeError):
    """The demonstrations could not be downloaded; nothing was written."""


def fetch(env_id: str, out: Path, ask: Ask, source: str | None, progress: Callable[[str], None]) -> Summary:
    """Write `out` (.h5) and its .json from the official demonstrations of a task, downloaded at most once.

    `source` is one of SOURCES, None for the best that there is. Raises UsageError before anything is downloaded or
    started, FetchError and ReplayError.
    """
    maniskill.load()
    from mani_skill import DEMO_DIR
    from mani_skill.utils.download_demo import DATASET_SOURCES

    problems = list(out_problems(out))
    if env_id not in DATASET_SOURCES:
        hint = did_you_mean(env_id, DATASET_SOURCES)
        problems.append(f"ENV must be a task with official demonstrations, but got {env_id!r}; {hint}")
    if problems:
        raise UsageError(problems)
    folder = Path(DEMO_DIR) / env_id
    if not folder.is_dir():
        url = urlsplit(DATASET_SOURCES[env_id].raw_dataset_url)
        progress(f"downloading the demonstrations of {env_id} from {url.netloc} to {folder}")
        try:
            _download(env_id, folder)
        except (OSError, HTTPException, BadZipFile) as e:
            if DiskFull.caused(e):
                raise
            raise FetchError(_otherwise(env_id, f"{url.netloc}{url.path}", str(e) or type(e).__name__, out)) from None
    return replay(choose(folder, ask.control_mode, source), out, ask, progress)


def _download(env_id: str, folder: Path) -> None:
    """By ManiSkill's downloader; `folder` appears complete or not at all."""
    from mani_skill.utils import download_demo

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{env_id}.", dir=folder.parent) as work, _patience():
        download_demo.main(download_demo.parse_args([env_id, "--quiet", "--output_dir", work]))
        if not (unpacked := Path(work, env_id)).is_dir():
            raise BadZipFile(f"what came holds no folder {env_id}")
        unpacked.rename(folder)


@contextmanager
def _patience() -> Iterator[None]:
    """ManiSkill's downloader would wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _otherwise(env_id: str, place: str, why: str, out: Path) -> str:
    ways = [
        f"on a machine with a network: python -m mani_skill.utils.download_demo {env_id} --output_dir demos; "
        f"copy a .h5 and the .json beside it from demos/{env_id} here, then: offrl-ray data replay FILE.h5 --out {out}",
    ]
    if env_id in EXPERTS:
        ways.insert(0, f"without a network: offrl-ray collect --env-id {env_id} --episodes 200 --out {out}")
    return "\n".join([f"{place} could not be downloaded: {why}", *ways])


def choose(folder: Path, control_mode: str, source: str | None) -> Path:
    """The file of a download that needs the least change. Raises UsageError if there is none of that source."""
    files = sorted(p for p in folder.rglob("*.h5") if p.with_suffix(".json").is_file())
    found = {p: p.parent.name for p in files if source in (None, p.parent.name)}
    if not files:
        raise UsageError([f"{folder} holds no .h5 with a .json beside it; remove it, and it is downloaded again"])
    if not found:
        hint = did_you_mean(str(source), {p.parent.name for p in files})
        raise UsageError([f"--source must be a folder of {folder}, but got {source!r}; {hint}"])

    def effort(path: Path) -> tuple[int, int, str]:
        meta = hdf5.read_json(path, Problems(path))
        mode = str(meta["env_info"]["env_kwargs"].get("control_mode")) if meta else ""
        change = {control_mode: 0, FROM: 1}.get(mode, 2)
        return change, SOURCES.index(found[path]) if found[path] in SOURCES else len(SOURCES), str(path)

    return min(found, key=effort)
