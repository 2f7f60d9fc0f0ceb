import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from offrl_ray import records
from offrl_ray.config import to_dict
from offrl_ray.errors import UsageError
from offrl_ray.records import FILE, encode
from offrl_ray.sweep.reuse import PACKAGE, Cached, code_version, find, key
from tests.toys import run_config

Config = dict[str, Any]
CODE, OTHER_CODE = "0123456789ab", "ba9876543210"
DIGESTS = ["d" * 64]


def config(*algo: dict[str, Any], **rest: Any) -> Config:
    return to_dict(run_config("cpql", *algo, **{"train_seeds": (3, 5)} | rest))


ONE, TWO = config({"alpha": 0.1}), config({"alpha": 0.2})


def point(trial: str, cfg: Config) -> Config:
    return {"trial": trial, "point": {}, "config": cfg, "seeds": [3, 5], "steps": 20}


def plan(*configs: Config, code: str | None = CODE, **fields: Any) -> Config:
    versions = {"torch": "2"} | ({"code": code} if code else {})
    points = [point(f"{i:02d}", c) for i, c in enumerate(configs)]
    data = [{"file": "toy.h5", "digest": DIGESTS[0]}]
    return {"kind": "plan", "points": points, "data": data, "versions": versions, "search": None} | fields


def session(code: str = CODE) -> Config:
    return {"kind": "session", "host": "h", "pid": 1, "argv": [], "versions": {"code": code}}


def start(trial: str = "00", attempt: int = 1, **more: Any) -> Config:
    return {"kind": "start", "trial": trial, "attempt": attempt, "step": 0, **more}


def reports(trial: str = "00", steps: Sequence[int] = (10, 20), value: float = 1.0) -> list[Config]:
    common = {"trial": trial, "attempt": 1, "seconds": 1.0}
    return [
        {"kind": kind, **common, "seed": seed, "step": step, **more}
        for step in steps
        for seed in (3, 5)
        for kind, more in (("train", {"metrics": {"q_mean": value}}), ("eval", {"success_once": [1, 0]}))
    ]


def end(trial: str = "00", status: str = "completed") -> Config:
    return {"kind": "end", "trial": trial, "attempt": 1, "status": status, "reason": "", "step": 20}


def ran(trial: str = "00", status: str = "completed") -> list[Config]:
    return [start(trial), *reports(trial), end(trial, status)]


def write(folder: Path, *log: Config) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [encode({"v": records.VERSION, "seq": i, **r, "time": 9.0}) for i, r in enumerate(log)]
    (folder / FILE).write_bytes(b"".join(lines))
    return folder


def searched(*folders: Path, wanted: Sequence[Config] = (ONE, TWO)) -> tuple[dict[str, Cached], list[str]]:
    """What is found under the numbers of the wanted configs, and what was said."""
    names, said = {key(c, DIGESTS, CODE): str(i) for i, c in enumerate(wanted)}, list[str]()
    return {names[k]: c for k, c in find(folders, names, said.append).items()}, said


# -- the key


def test_the_same_data_elsewhere_is_the_same_point() -> None:
    moved = config({"alpha": 0.1}, data_files=("/elsewhere/demos.h5",))
    assert key(moved, DIGESTS, CODE) == key(ONE, DIGESTS, CODE)


def test_a_setting_without_effect_does_not_count() -> None:
    a, b = (config({"alpha": 0.0, "q_grad_mode": m}) for m in ("single_step", "whole_grad"))
    assert a != b
    assert key(a, DIGESTS, CODE) == key(b, DIGESTS, CODE)


@pytest.mark.parametrize(
    "other",
    [
        key(TWO, DIGESTS, CODE),
        key(config({"alpha": 0.1}, train_seeds=(3, 6)), DIGESTS, CODE),
        key(config({"alpha": 0.1}, train_steps=21), DIGESTS, CODE),
        key(config({"alpha": 0.1}, eval_episodes=21), DIGESTS, CODE),
        key(ONE, ["e" * 64], CODE),
        key(ONE, DIGESTS, OTHER_CODE),
    ],
    ids=["setting", "seeds", "steps", "evaluation", "data", "code"],
)
def test_another_run_has_another_key(other: str) -> None:
    assert other != key(ONE, DIGESTS, CODE)


def test_the_order_of_files_counts_as_their_weights_do() -> None:
    both = config(data_files=("a.h5", "b.h5"))
    assert key(both, ["a", "b"], CODE) != key(both, ["b", "a"], CODE)


def test_a_config_that_went_through_the_records_has_the_same_key() -> None:
    assert key(json.loads(json.dumps(ONE)), DIGESTS, CODE) == key(ONE, DIGESTS, CODE)


def test_files_and_digests_must_be_as_many_and_a_config_valid() -> None:
    with pytest.raises(ValueError, match="shorter"):
        key(ONE, [], CODE)
    with pytest.raises(UsageError, match="algo"):
        key({"algo": {"name": "cpql", "alfa": 1}}, DIGESTS, CODE)


# -- the code version


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return shutil.copytree(PACKAGE, tmp_path / "copy", ignore=shutil.ignore_patterns("__pycache__"))


def edit(path: Path) -> None:
    path.write_text(path.read_text() + "\nEDITED = 1\n")


def fresh(package: Path) -> str:
    return code_version.__wrapped__(package)


def test_the_code_version_is_of_content_alone(package: Path) -> None:
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "run.cpython-311.pyc").write_bytes(b"x")
    assert fresh(package) == code_version()
    assert len(code_version()) == 12


@pytest.mark.parametrize(
    "module",
    ["run", "train", "evaluate", "config", "algos/nets", "algos/cpql", "data/dataset", "__init__"],
)
def test_code_that_makes_a_result_changes_the_version(module: str, package: Path) -> None:
    edit(package / f"{module}.py")
    assert fresh(package) != code_version()


@pytest.mark.parametrize("module", ["cli/__init__", "distributed/launch", "collect/scripted", "sweep/reuse", "export"])
def test_code_around_a_run_does_not(module: str, package: Path) -> None:
    edit(package / f"{module}.py")
    assert fresh(package) == code_version()


def test_a_module_that_a_run_begins_to_import_counts(package: Path) -> None:
    (package / "sweep" / "rules.py").write_text("LIMIT = 1\n")
    assert fresh(package) == code_version()
    run = package / "run.py"
    run.write_text(run.read_text().replace("import math\n", "import math\nfrom offrl_ray.sweep.rules import LIMIT\n"))
    versions = [code_version(), fresh(package)]
    for name in ("rules", "__init__"):
        edit(package / "sweep" / f"{name}.py")
        versions.append(fresh(package))
    assert len(set(versions)) == 4


# -- finding


@pytest.mark.parametrize("status", ["completed", "diverged"])
def test_a_result_is_found_with_its_records(status: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "a", plan(TWO, ONE), session(), *ran("01", status))
    found, said = searched(folder)
    assert said == []
    assert found == {"0": Cached(folder, "01", [*reports("01"), end("01", status)])}


def test_records_can_be_written_again(tmp_path: Path) -> None:
    found, _ = searched(write(tmp_path / "a", plan(ONE), session(), *ran()))
    with records.Writer(tmp_path / "b") as writer:
        for r in found["0"].records:
            writer.write(**r | {"trial": "mine"}, time=1.0)
    log = records.read(tmp_path / "b")
    assert log.problems == []
    assert [r["seq"] for r in log.records] == list(range(9))


def test_an_asked_point_is_found(tmp_path: Path) -> None:
    asked = {"kind": "point", **point("s1", ONE), "cell": 0, "number": 0}
    folder = write(tmp_path / "a", plan(search={"sampler": "tpe"}), session(), asked, *ran("s1"))
    assert searched(folder)[0]["0"].trial == "s1"


def test_what_an_attempt_did_again_stands_once_and_as_it_was_last(tmp_path: Path) -> None:
    first = [start(), *reports(steps=(10, 20), value=1.0)]
    again = [start(attempt=2), *reports(steps=(20,), value=2.0), end()]
    found, _ = searched(write(tmp_path / "a", plan(ONE), session(), *first, session(), *again))
    assert found["0"].records == [*reports(steps=(10,)), *reports(steps=(20,), value=2.0), end()]


LOGS: dict[str, list[Config]] = {
    "pruned": [plan(ONE), session(), *ran(status="pruned")],
    "failed": [plan(ONE), session(), *ran(status="failed")],
    "not ended": [plan(ONE), session(), start(), *reports()],
    "open again": [plan(ONE), session(), *ran(), {"kind": "retry", "trial": "00"}],
    "begun again": [plan(ONE), session(), *ran(), start(attempt=2)],
    "another point": [plan(config({"alpha": 0.3})), session(), *ran()],
    "other data": [plan(ONE, data=[{"file": "toy.h5", "digest": "e" * 64}]), session(), *ran()],
    "data of no file": [plan(ONE, data=[], search={"sampler": "tpe"}), session(), *ran()],
    "other code": [plan(ONE, code=OTHER_CODE), session(OTHER_CODE), *ran()],
    "no code": [plan(ONE, code=None), *ran()],
    "code of a later session": [plan(ONE), session(), session(OTHER_CODE), *ran()],
    "code that changed between attempts": [
        *(plan(ONE), session(OTHER_CODE), start(), *reports(steps=(10,))),
        *(session(), start(attempt=2), *reports(steps=(20,)), end()),
    ],
    "another version's config": [plan(ONE | {"extra": 1}), session(), *ran()],
    "a name that leads elsewhere": [plan(points=[point("../x", ONE)]), session(), *ran("../x")],
}


@pytest.mark.parametrize("log", LOGS.values(), ids=LOGS)
def test_what_is_no_such_result_is_not_found(log: list[Config], tmp_path: Path) -> None:
    assert searched(write(tmp_path / "a", *log))[0] == {}


def test_a_session_with_this_code_counts_though_another_had_another(tmp_path: Path) -> None:
    log = [plan(ONE, TWO), session(), *ran("00"), session(OTHER_CODE), *ran("01")]
    assert list(searched(write(tmp_path / "a", *log))[0]) == ["0"]


# -- damage


LOG = [plan(ONE, TWO), session(), *ran("00"), *ran("01")]
END = [i for i, r in enumerate(LOG) if r["kind"] == "end"]


def flip(line: bytes) -> list[bytes]:
    return [line[:9] + b"~" + line[10:]]


def lose(line: bytes) -> list[bytes]:
    return []


@pytest.mark.parametrize("damage", [flip, lose], ids=["damaged", "lost"])
@pytest.mark.parametrize("number", range(len(LOG)))
def test_a_line_that_is_damaged_or_lost_spoils_what_ends_after_it(
    damage: Callable[[bytes], list[bytes]], number: int, tmp_path: Path
) -> None:
    folder = write(tmp_path / "a", *LOG)
    lines = (folder / FILE).read_bytes().splitlines(keepends=True)
    (folder / FILE).write_bytes(b"".join([*lines[:number], *damage(lines[number]), *lines[number + 1 :]]))
    found, said = searched(folder)
    assert list(found) == [str(i) for i, at in enumerate(END) if at < number]
    assert len(said) == (number == 0)


FOREIGN = {
    "empty": b"",
    "text": b"hello\n",
    "json": b'{"kind": "plan"}\n',
    "no plan": encode({"v": 1, "seq": 0, **start()}),
    "plan without anything": encode({"v": 1, "seq": 0, "kind": "plan"}),
    "plan of strange things": encode({"v": 1, "seq": 0, **plan(), "points": [1], "data": [2]}),
    "deep": b"[" * 100_000 + b"\n",
    "escapes": b'{"crc":"0","\x1b[2J": 1}\n' + encode({"v": "\x1b[2J", "seq": 0}),
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_folder_is_passed_over_and_said(content: bytes, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign\x1b[2J"
    foreign.mkdir()
    (foreign / FILE).write_bytes(content)
    good = write(tmp_path / "good", *LOG)
    found, said = searched(foreign, good)
    assert {c.folder for c in found.values()} == {good}
    assert len(said) == 1
    assert "foreign" in said[0]
    assert "NoneType" not in said[0]
    assert said[0].isprintable()


def test_a_folder_without_records_is_no_news(tmp_path: Path) -> None:
    (tmp_path / "strange" / FILE).mkdir(parents=True)
    assert searched(tmp_path, tmp_path / "nowhere", tmp_path / "strange") == ({}, [])


def test_a_torn_end_spoils_nothing(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", *LOG)
    with (folder / FILE).open("ab") as f:
        f.write(b'{"v":1,"seq"')
    assert list(searched(folder)[0]) == ["0", "1"]


# -- several folders


def test_the_first_folder_that_has_a_result_gives_it(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", plan(ONE), session(), *ran()), write(tmp_path / "b", *LOG)
    assert {k: c.folder for k, c in searched(a, b)[0].items()} == {"0": a, "1": b}
    assert {k: c.folder for k, c in searched(b, a)[0].items()} == {"0": b, "1": b}


@pytest.mark.parametrize("first", [plan(config({"alpha": 0.3})), plan(ONE, code=OTHER_CODE, search={"sampler": "tpe"})])
def test_a_folder_of_other_points_or_code_is_known_by_its_plan(
    first: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[bytes] = []
    original = records.decode
    monkeypatch.setattr(records, "decode", lambda line: (decoded.append(line), original(line))[1])
    assert searched(write(tmp_path / "a", first, session(), *ran())) == ({}, [])
    assert len(decoded) == 1


def test_nothing_is_read_when_nothing_is_wanted(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", *LOG)
    (folder / FILE).write_bytes(b"damaged\n")
    assert searched(folder, wanted=()) == ({}, [])
