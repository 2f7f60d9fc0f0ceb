"""Results of earlier sweeps that are this sweep's results too: same point, same data, same code, same seeds."""

import ast
import contextlib
import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from offrl_ray import records, store
from offrl_ray.config import canonical, from_dict, to_dict
from offrl_ray.errors import UsageError, plain
from offrl_ray.sweep.ledger import NAME, Record

PACKAGE = Path(__file__).parents[1]
RESULTS = ("completed", "diverged")
"""how a trial ends if its config alone decides; pruned: other trials did, failed: the machine"""
NOT_COPIED = ("v", "seq", "time")
FOREIGN = (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError)


class Cached(NamedTuple):
    folder: Path
    trial: str
    records: list[Record]  # train, eval and last the end, without what a writer adds


@cache
def code_version(package: Path = PACKAGE) -> str:
    """12 hex digits of SHA-256 over the names and bytes of the sources that can change a run's result.

    Those are offrl_ray.run's and all that it imports, from whatever depth. So the command line, distribution, search,
    collection (whose files are told by their content), export and analysis may change, and results stay results.
    """
    sha = hashlib.sha256()
    for name, path in sorted(_sources(package).items()):
        content = path.read_bytes()
        sha.update(f"{name} {len(content)}\n".encode() + content)
    return sha.hexdigest()[:12]


def _sources(package: Path) -> dict[str, Path]:
    """Module -> its file, of offrl_ray.run's imports."""
    modules: dict[str, Path] = {}
    for path in package.rglob("*.py"):
        parts = path.relative_to(package).with_suffix("").parts
        modules[".".join(("offrl_ray", *parts)).removesuffix(".__init__")] = path
    reached: dict[str, Path] = {}
    todo = ["offrl_ray.run"]
    while todo:
        name = todo.pop()
        if name in modules and name not in reached:
            reached[name] = modules[name]
            todo += [name.rpartition(".")[0], *_imports(modules[name])]
    return reached


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{a.name}" for a in node.names)


def key(config: Mapping[str, Any], data_digests: Sequence[str], code: str) -> str:
    """Names a result: the code version, and a digest of the config as records have it, up to inert fields.

    Each of its files is told by its content, `data_digests` in the order of `data.files`. Raises UsageError if the
    config is none of this version, ValueError if files and digests are not as many.
    """
    tree = to_dict(canonical(from_dict(config)))
    tree["data"]["files"] = [d for _, d in zip(tree["data"]["files"], data_digests, strict=True)]
    return f"{code}-{hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()}"


def find(folders: Iterable[Path], keys: Collection[str], say: Callable[[str], None]) -> dict[str, Cached]:
    """Results with these keys, from the first folder that has each. What cannot be read is passed over, and said.

    A trial counts if it ended `RESULTS`, was trained by one code version from first to last, and no record up to its
    end is damaged or missing in its folder: a lost line could be any trial's.
    """
    wanted, found = set(keys), dict[str, Cached]()
    for folder in folders:
        try:
            if wanted and (folder / records.FILE).is_file() and _may_have(folder, wanted):
                found |= {k: c for k, c in _results(folder) if k in wanted}
        except FOREIGN as e:
            say(_unread(folder, e))
        wanted -= found.keys()
    return found


def beside(folder: Path) -> list[Path]:
    """The sweeps in the same place, by name; what cannot be looked at is none."""

    def readable(f: Path) -> bool:
        with contextlib.suppress(OSError):
            return store.exists(records.kept(f))
        return False

    others: list[Path] = []
    with contextlib.suppress(OSError):
        others = [folder.parent / n for n in store.names(folder.parent)]
    return [f for f in others if f != folder and readable(f)]


class Earlier:
    """The results of earlier sweeps on this data by this code, looked up point by point: a search asks as it goes."""

    def __init__(self, folders: Iterable[Path], data: Sequence[Record], say: Callable[[str], None]):
        self._folders, self._say = list(folders), say
        self._digests = {Path(f["file"]): f["digest"] for f in data}
        self._keys: dict[Path, set[str]] = {}  # of each folder, read when first asked

    def get(self, config: Record) -> Cached | None:
        """The result of exactly this config, from the first folder that has it."""
        if not self._folders:
            return None
        k = key(config, [self._digests[Path(f)] for f in config["data"]["files"]], code_version())
        for folder in self._folders:
            if folder not in self._keys:
                self._keys[folder] = self._read(folder)
            if k in self._keys[folder]:
                return find([folder], [k], self._say).get(k)
        return None

    def _read(self, folder: Path) -> set[str]:
        try:
            return {k for k, _ in _results(folder)}
        except FileNotFoundError:
            return set()
        except FOREIGN as e:
            self._say(_unread(folder, e))
            return set()


def _unread(folder: Path, e: Exception) -> str:
    return plain(f"{folder} is not searched for earlier results, its records cannot be read: {e!r}")


def _may_have(folder: Path, wanted: Collection[str]) -> bool:
    """A look at the plan, the first record but for sessions, that spares reading all others."""
    with (folder / records.FILE).open("rb") as f:
        plan = next((r for r in map(records.decode, f) if r["kind"] == "plan"), None)
    if plan is None:
        raise ValueError("no plan")
    code, digests = plan["versions"].get("code"), _digests(plan)
    if not any(k.startswith(f"{code}-") for k in wanted):
        return False
    if plan.get("search"):  # its points come later
        return True
    return any(_key(p["config"], digests, code) in wanted for p in plan["points"])


def _digests(plan: Record) -> dict[Path, str]:
    return {Path(f["file"]): f["digest"] for f in plan["data"]}


def _key(config: Record, digests: Mapping[Path, str], code: str) -> str | None:
    """None if the config is another version's."""
    try:
        return key(config, [digests[Path(f)] for f in config["data"]["files"]], code)
    except UsageError:
        return None


class _Trial:
    def __init__(self, config: Record):
        self.config = config
        self.codes: set[str | None] = set()
        self.reports: dict[tuple[str, int, int], Record] = {}
        self.end: Record | None = None

    def add(self, r: Record, code: str | None) -> None:
        if r["kind"] == "start":
            self.codes.add(code)
        if r["kind"] in ("start", "retry"):
            self.end = None
        if r["kind"] in ("train", "eval"):  # an attempt repeats what it does again
            self.reports[r["kind"], r["seed"], r["step"]] = r
        if r["kind"] == "end":
            self.end = r


def _results(folder: Path) -> Iterator[tuple[str, Cached]]:
    trials: dict[str, _Trial] = {}
    digests: dict[Path, str] = {}
    code: str | None = None
    for number, r in enumerate(records.read(folder).records):
        intact = r["seq"] == number  # so were all lines before it
        if r["kind"] in ("plan", "session"):
            code = r["versions"].get("code")
        if r["kind"] == "plan":
            digests |= _digests(r)
            trials |= {p["trial"]: _Trial(p["config"]) for p in r["points"]}
        elif r["kind"] == "point":
            trials[r["trial"]] = _Trial(r["config"])
        elif r.get("trial") in trials and (intact or r["kind"] != "end"):
            trials[r["trial"]].add(r, code)
    for name, t in trials.items():
        (only,) = t.codes if len(t.codes) == 1 else (None,)
        if only and NAME.fullmatch(name) and t.end and t.end["status"] in RESULTS:
            k = _key(t.config, digests, only)
            if k:
                kept = [*t.reports.values(), t.end]
                copied = [{f: v for f, v in r.items() if f not in NOT_COPIED} for r in kept]
                yield k, Cached(folder, name, copied)
