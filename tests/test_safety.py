"""What a foreign folder, file or name cannot do, and what is never written down."""

import ast
import io
import json
import os
import pickle
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch

from offrl_ray import checkpoint, cli
from offrl_ray.algos import VARIANTS, make
from offrl_ray.checkpoint import MANIFEST, TENSORS, path_of
from offrl_ray.config import describe
from offrl_ray.distributed.session import _ensure_token
from offrl_ray.errors import CheckpointError, UsageError, plain
from offrl_ray.export import export
from offrl_ray.records import Writer, encode
from offrl_ray.sweep.ledger import safe_trial
from offrl_ray.sweep.plan import Cell, _name
from offrl_ray.train import start
from results_analysis import heatmap
from tests.conftest import REPOSITORY, MakeRun, WriteFile

CLEAR = "\x1b[2J\x1b]0;owned\x07\u202e\r"
CODE = [p for folder in ("offrl_ray", "results_analysis", "tune_configs") for p in (REPOSITORY / folder).rglob("*.py")]


# -- names


@pytest.mark.parametrize("name", ["00", "train", "03-alpha_0.1-last_5", "A" * 64, "a..b"])
def test_a_plain_name_is_a_folder_of_the_sweep(name: str, tmp_path: Path) -> None:
    assert safe_trial(tmp_path, name) == tmp_path / "trials" / name


WRONG = ["", ".", "..", "../x", "../../x", "/etc", "a/b", "a/../b", "-rf", ".hidden", "a" * 65, "a\n", "a\0", "é", "²"]


@pytest.mark.parametrize("name", [*WRONG, CLEAR, None, 7, ["a"]], ids=repr)
def test_any_other_name_is_refused_and_shown_harmlessly(name: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as e:
        safe_trial(tmp_path, name)
    assert len(e.value.problems) == 1
    assert str(e.value).isprintable()


@pytest.mark.parametrize("place", ["trials", "trials/00"])
@pytest.mark.parametrize("target", ["outside", "sweep/other"])
def test_a_link_in_place_of_a_trial_is_refused(place: str, target: str, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    (tmp_path / target).mkdir(parents=True)
    (folder / place).parent.mkdir(parents=True, exist_ok=True)
    (folder / place).symlink_to(tmp_path / target)
    with pytest.raises(UsageError, match="link"):
        safe_trial(folder, "00")


def test_a_folder_may_itself_be_reached_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    assert safe_trial(tmp_path / "runs", "00") == tmp_path / "runs" / "trials" / "00"


def test_the_names_that_a_plan_gives_are_plain(tmp_path: Path) -> None:
    for axes in ({}, {"algo.alpha": 0.1}, {"data.files": ["../../x", CLEAR]}, {"k" * 80: 1}):
        safe_trial(tmp_path, _name(Cell(3, axes, {}, {})))


# -- terminals


def test_plain_text_is_left_as_it_is_and_all_else_escaped() -> None:
    assert plain("été: 3 > 2, 'x' \\") == "été: 3 > 2, 'x' \\"
    assert plain("a\x1b[2Jb\nc\u202e") == "a\\x1b[2Jb\\nc\\u202e"


def test_an_error_never_prints_what_a_terminal_obeys() -> None:
    error = UsageError([f"file {CLEAR}", "two\nlines"])
    assert all(line.isprintable() for line in error.report().split("\n"))
    assert len(error.report().split("\n")) == 3


def sweep(folder: Path, text: str) -> Path:
    """Records that have a text wherever a forger can put one."""
    with Writer(folder) as w:
        rows = [{"trial": text, "point": {"algo.alpha": text}, "config": {}, "seeds": [0], "steps": 1}]
        w.write("plan", name=text, question=text, axes={"algo.alpha": [text]}, points=rows, data=[], versions={})
        w.write("start", trial=text, attempt=1, step=0)
        episodes = {
            "episodes": 1,
            "members": [0],
            "episode_seeds": [0],
            "success_once": [1],
            "success_at_end": [1],
            "return": [1.0],
            "length": [1],
            "q_start": [1.0],
            "discounted_return": [1.0],
        }
        w.write("eval", trial=text, seed=0, step=1, digest=text, env={"id": text}, seconds=1.0, **episodes)
        w.write("end", trial=text, status=text, reason=text, step=1, diverged={"0": text}, cost={})
    with (folder / "records.jsonl").open("ab") as f:
        f.write(encode({"v": text, "seq": 9}))
    return folder


def test_the_heatmap_of_forged_records_prints_nothing_that_a_terminal_obeys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sweep(tmp_path, CLEAR)
    assert heatmap.main([str(folder)]) == 0
    out, err = capsys.readouterr()
    assert ["\\x1b[2J" in text for text in (out, err)] == [True, True]
    assert [line for line in [*out.split("\n"), *err.split("\n")] if not line.isprintable()] == []
    assert {p.name for p in tmp_path.iterdir()} == {"records.jsonl", "heatmap.csv", "heatmap.png"}


def test_data_check_of_a_forged_file_prints_nothing_that_a_terminal_obeys(
    write_file: WriteFile, capsys: pytest.CaptureFixture[str]
) -> None:
    def forge(f: h5py.File, meta: dict[str, Any]) -> None:
        f.create_group("traj_" + CLEAR)
        meta["env_info"]["env_id"] = CLEAR

    assert cli.main(["data", "check", str(write_file(damage=forge))]) == 2
    out, _ = capsys.readouterr()
    assert "\\x1b[2J" in out
    assert [line for line in out.split("\n") if not line.isprintable()] == []


# -- pickles


class Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, ("executed",)


@pytest.fixture
def trapped(tiny: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A sweep's folder in which everything that can be unpickled is a trap, under checksums that fit."""
    monkeypatch.chdir(tmp_path)
    cfg, data = tiny()
    folder = sweep(tmp_path / "sweep", "00")
    trial = safe_trial(folder, "00")
    checkpoint.save(trial, start(cfg, make(cfg.algo, data.spec))._replace(step=4), cfg, data.spec, 0.0, {})
    buffer = io.BytesIO()
    torch.save({"state": Bomb(), "generators": Bomb(), "source": Bomb()}, buffer)
    saved = path_of(trial, 4)
    (saved / TENSORS).write_bytes(buffer.getvalue())
    manifest = json.loads((saved / MANIFEST).read_text())
    rest = {k: manifest[k] for k in manifest if k not in ("digest", "seconds", "sha256")}
    rest |= {"digest": checkpoint.digest_of(rest, saved), "seconds": 0.0}
    (saved / MANIFEST).write_text(json.dumps({**rest, "sha256": checkpoint._sha256(rest).hexdigest()}))
    for place in (folder, folder / "ray", folder / "ray" / "00", trial):
        place.mkdir(exist_ok=True)
        for name in ("tuner.pkl", "params.pkl", "searcher-state-1.pkl", "trainable.pkl"):
            (place / name).write_bytes(pickle.dumps(Bomb()))
    yield folder
    assert not Path("executed").exists()


def test_the_trap_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Bomb()))
    assert Path("executed").exists()


def test_loading_exporting_and_drawing_execute_nothing(trapped: Path, tmp_path: Path) -> None:
    saved = path_of(safe_trial(trapped, "00"), 4)
    with pytest.raises(UsageError, match=r"damaged.*[Ww]eights"):  # all checksums fit
        checkpoint.load(saved)
    with pytest.raises(UsageError, match="damaged"):
        export(saved, tmp_path / "out", {})
    assert cli.main(["evaluate", str(saved)]) == 2
    assert heatmap.main([str(trapped)]) == 0
    for command in ("status", "fsck", "rebuild"):
        cli.main([command, str(trapped)])
    with pytest.raises(CheckpointError):
        checkpoint.newest(saved.parent)


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_no_code_unpickles() -> None:
    loads, unsafe = 0, []
    for path in CODE:
        for name, call in calls(path):
            given = {k.arg: ast.unparse(k.value) for k in call.keywords}
            loads += name == "torch.load"
            bad = name == "torch.load" and given.get("weights_only") != "True"
            bad |= given.get("allow_pickle", "False") != "False" or name.endswith("add_safe_globals")
            bad |= bool(re.match(r"(cloud)?pickle\.(loads?|Unpickler)$|eval$|exec$|yaml\.(unsafe_)?load$", name))
            bad |= name.endswith("Tuner.restore")
            unsafe += [(path.name, name)] * bad
    assert loads
    # what Tune noted a moment ago for this very process, in Ray's private session folder and in no sweep's
    assert unsafe == [("failures.py", "cloudpickle.loads")]


# -- secrets


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home of one's own, without a token, and with a umask that shows everything to all."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    mask = os.umask(0o022)
    yield tmp_path
    os.umask(mask)


def mode(path: Path) -> str:
    return oct(stat.S_IMODE(path.stat().st_mode))


def assert_token_is_private(home: Path) -> str:
    folder = home / ".ray"
    assert [mode(folder), mode(folder / "auth_token")] == ["0o700", "0o600"]
    assert [p.name for p in folder.iterdir()] == ["auth_token"]
    return (folder / "auth_token").read_text()


def test_a_token_is_made_once_for_this_user_alone(home: Path) -> None:
    _ensure_token()
    token = assert_token_is_private(home)
    assert re.fullmatch("[0-9a-f]{64}", token)
    _ensure_token()
    assert assert_token_is_private(home) == token


def test_a_token_that_others_could_read_is_closed(home: Path) -> None:
    (home / ".ray").mkdir(mode=0o755)
    (home / ".ray" / "auth_token").write_text("old")
    assert mode(home / ".ray" / "auth_token") == "0o644"
    _ensure_token()
    assert assert_token_is_private(home) == "old"


def test_a_token_is_never_open_or_half_written_for_a_moment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str]] = []

    def link(source: Path, target: Path) -> None:
        seen.append((mode(source), source.read_text()))
        os.rename(source, target)
        source.touch()

    monkeypatch.setattr("offrl_ray.distributed.session.os.link", link)
    _ensure_token()
    assert seen == [("0o600", assert_token_is_private(home))]


def test_the_token_of_a_faster_driver_is_kept(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(source: Path, target: Path) -> None:
        target.write_text("theirs")
        raise FileExistsError

    monkeypatch.setattr("offrl_ray.distributed.session.os.link", late)
    _ensure_token()
    assert assert_token_is_private(home) == "theirs"


@pytest.mark.parametrize("name", ["RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"])
def test_a_token_of_the_users_own_is_left_to_the_user(name: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "x")
    _ensure_token()
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_setting_is_a_secret(variant: str) -> None:
    secret = re.compile(r"token|secret|passw|credential|(^|[._])key($|[._])")
    assert [s.key for s in describe(variant) if secret.search(s.key)] == []


def test_the_environment_is_read_by_name_and_never_as_a_whole() -> None:
    whole, named = [], 0
    for path in CODE:
        tree = ast.parse(path.read_text())
        by_name = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Subscript | ast.Attribute) and ast.unparse(node.value) == "os.environ":
                taken = isinstance(node, ast.Subscript) or node.attr in ("get", "setdefault", "pop")
                by_name |= {id(node.value)} if taken else set()
            if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In | ast.NotIn):
                by_name |= {id(c) for c in node.comparators}
        uses = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr in ("environ", "environb")]
        named += len(uses)
        whole += [f"{path.name}:{n.lineno}" for n in uses if id(n) not in by_name]
    assert named
    assert whole == []
