"""A running Ray, node by node: what differs from here, and what a node does not see."""

from pathlib import Path

from offrl_ray.distributed import address, drive, preflight, session
from offrl_ray.doctor import files
from offrl_ray.doctor.check import Check, fail, ok, warn
from offrl_ray.errors import UsageError

FATAL = ("python", "ray", "offrl-ray", "code")
"""Where these differ, a trial cannot start, or is another experiment."""


def nodes(at: str, out: str) -> list[Check]:
    """Of the Ray that `--address` means; `out` is where results go. Raises UsageError for an address that is none."""
    found = session.locate(at)
    if found.address == address.LOCAL:
        return [warn("cluster", f"none to join ({found.why})", "`ray start --head`; a sweep starts one of its own")]
    folder = None if files.is_url(out) else files.existing(Path(out))
    try:
        with session.ray_session(found, "offrl-doctor"):
            seen = preflight.nodes([] if folder is None else [folder])
    except UsageError as e:
        return [fail("cluster", problem) for problem in e.problems]
    here = drive.versions()
    return [ok("cluster", f"{found.address} ({found.why})"), *(check for n in seen for check in judge(n, here, folder))]


def judge(node: preflight.Node, here: dict[str, str], folder: Path | None) -> list[Check]:
    """What is wrong with a node, or that nothing is."""
    name, where = f"node {node.name}", f"{node.address}: "
    if not node.versions:
        return [fail(name, f"{where}does not answer", "see `ray status`, and the logs on that node")]
    checks = []
    differ = {k: node.versions.get(k, "none") for k in here if node.versions.get(k, "none") != here[k]}
    mend = "install the same there: pip install --constraint constraints.txt"
    for level, say in ((True, fail), (False, warn)):
        told = ", ".join(f"{k} {v}, here {here[k]}" for k, v in differ.items() if (k in FATAL) is level)
        if told:
            checks.append(say(name, where + told, mend))
    if folder is not None and not node.sees.get(str(folder), False):
        shared = "give --out a folder on storage that all nodes share, or a URL"
        checks.append(fail(name, f"{where}does not see {folder}, or cannot write there", shared))
    units = ", ".join(f"{node.resources.get(k, 0):g} {k}" for k in ("CPU", "GPU"))
    if node.resources.get("GPU", 0) and not node.gpus:
        checks.append(warn(name, f"{where}Ray counts {units}, but nvidia-smi shows no GPU there", "update its driver"))
    return checks or [ok(name, where + ", ".join([units, *node.gpus]))]
