"""Records of a sweep at a URL: whatever is lost, what the store has is the log, and it is one log."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from offrl_ray import records, segments, store
from offrl_ray.errors import DiskFull, UsageError
from offrl_ray.objects import Fenced, StoreError
from offrl_ray.records import FILE, Writer
from offrl_ray.store import place
from offrl_ray.sweep.reuse import beside
from offrl_ray.sweep.state import State
from tests import ledgers
from tests.stores import Crash, at, failing, objects

Records = list[dict[str, Any]]
BATCHES: list[Records] = [[ledgers.plan([ledgers.point("a")]), ledgers.session()], [ledgers.start("a")]]
BATCHES += [[r] for r in ledgers.work("a")[1:]]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offrl_ray.objects.PAUSES", (0.0, 0.0))
    monkeypatch.setattr(store, "PATIENCE_SECONDS", 0.05)


def read(folder: Path) -> Records:
    """What there is, and nothing is wrong with it."""
    try:
        log, problems = records.read(folder)
    except FileNotFoundError:
        return []
    assert problems == []
    return log


def fresh(folder: Path) -> Records:
    """What another machine reads."""
    shutil.rmtree(store.copies(), ignore_errors=True)
    return read(folder)


def told(log: Records) -> Records:
    return [{k: v for k, v in r.items() if k not in ("v", "seq", "time")} for r in log]


def flat(batches: list[Records]) -> Records:
    return [r for b in batches for r in b]


# -- URLs and their working copies


@pytest.mark.parametrize("text", ["s3://bucket/runs", "gs://b/a.b-c_d/e", "abfs://box@account.dfs.core.windows.net/x"])
def test_a_url_has_one_working_copy_and_it_the_url(text: str, url: str) -> None:
    folder = place(text)
    assert folder.is_relative_to(store.copies())
    assert store.called(folder) == text
    assert store.called(folder / "confirm") == f"{text}/confirm"
    assert place(f"{text}/confirm/") == folder / "confirm"


@pytest.mark.parametrize(
    "text", ["s3://b/../x", "s3://b//x", "s3://b/*", "s3:///x", "s3://b/x?versionId=1", "s3://b/.x"]
)
def test_a_url_that_is_none_is_refused(text: str, url: str) -> None:
    with pytest.raises(UsageError, match="a URL's parts must match"):
        place(text)


@pytest.mark.parametrize("text", ["S3://b/x", "s3://", "s3:/b/x", " s3://b/x", "file://runs"])
def test_what_looks_like_a_url_is_no_folder(text: str) -> None:
    with pytest.raises(UsageError, match="a URL must be SCHEME://BUCKET/PLACE"):
        place(text)


def test_other_places_are_folders(url: str, tmp_path: Path) -> None:
    assert place("runs/x") == Path("runs/x")
    assert place("file:///a/b") == Path("/a/b")
    for folder in (tmp_path, Path("x"), store.copies(), Path("a\0b"), store.copies() / "memory"):
        assert store.store(folder) is None
    assert store.called(tmp_path) == str(tmp_path)


def test_a_working_copy_is_known_by_every_path_to_it(url: str, tmp_path: Path) -> None:
    folder = place(url)
    folder.mkdir(parents=True)
    (tmp_path / "link").symlink_to(folder)
    assert store.called(tmp_path / "link" / "trials") == f"{url}/trials"


def test_a_file_system_that_is_not_installed_is_named_with_its_extra(url: str) -> None:
    def missing(url: str, **options: Any) -> None:
        raise ImportError("Install s3fs to access S3")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fsspec.core.url_to_fs", missing)
        for text, fix in {"s3://b/x": r"pip install 'offrl-ray\[s3\]'", "sftp://h/x": "install what it names"}.items():
            found = store.store(place(text))
            assert found
            with pytest.raises(UsageError, match=f"this machine cannot speak .*{fix}"):
                found.names()
            assert len(found.problems()) == 1
    unknown = store.store(place("nosuch://b/x"))
    assert unknown
    assert "known are s3://" in unknown.problems()[0]


def test_a_store_that_cannot_be_written_is_a_problem(url: str) -> None:
    found = store.store(place(url))
    assert found
    assert found.problems() == []
    assert objects(url) == {}
    with failing(before=at(0, PermissionError("no"), "pipe_file")):
        (problem,) = found.problems()
    assert problem.startswith(f"--out: {url} refuses: PermissionError: no; look at")


# -- writing


def test_each_batch_is_on_the_store_when_it_is_written(url: str) -> None:
    folder = place(url)
    with Writer(folder) as writer:
        for i, batch in enumerate(BATCHES, 1):
            writer.write_all(batch)
            assert len(objects(url)) == i
    assert b"".join(objects(url).values()) == (folder / FILE).read_bytes()
    assert min(objects(url)) == "records/000000000000.jsonl"
    assert told(fresh(folder)) == flat(BATCHES)


def test_of_two_writers_the_first_to_write_goes_on_and_the_other_never(url: str) -> None:
    folder = place(url)
    with Writer(folder) as old:
        old.write_all(BATCHES[0])
        shutil.rmtree(store.copies())
        records.read(folder)
        with Writer(folder) as new:
            new.write("session", host="there", pid=2, argv=[], versions={})
            for _ in range(2):
                with pytest.raises(Fenced, match="record 2 has been written by another driver"):
                    old.write_all(BATCHES[1])
            new.write_all(BATCHES[1])
    log = fresh(folder)
    assert [r["kind"] for r in log] == ["plan", "session", "session", "start"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_try_that_was_not_answered_is_repeated_and_counts_once(when: str, url: str) -> None:
    folder = place(url)
    with Writer(folder) as writer, failing(**{when: at(1, ConnectionError("reset"), "pipe_file")}):
        for batch in BATCHES[:3]:
            writer.write_all(batch)
    assert told(fresh(folder)) == flat(BATCHES[:3])
    assert len(objects(url)) == 3


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_writer_that_has_lost_its_store_writes_no_more(when: str, url: str) -> None:
    """It does not know whether the store took the record, so no other may have its number."""

    def gone(name: str, path: Any) -> None:
        raise ConnectionError("away")

    folder = place(url)
    with Writer(folder) as writer:
        writer.write_all(BATCHES[0])
        with (
            failing(**{when: gone}),
            pytest.raises(StoreError, match=r"does not answer for 0\.05 s: ConnectionError: away"),
        ):
            writer.write_all(BATCHES[1])
        with pytest.raises(StoreError):
            writer.write_all(BATCHES[2])
    kept = fresh(folder)
    assert told(kept) == flat(BATCHES[:2] if when == "after" else BATCHES[:1])
    with Writer(folder) as writer:
        writer.write_all(BATCHES[3])
    assert told(fresh(folder)) == [*told(kept), *BATCHES[3]]


def test_a_copy_that_has_no_room_ends_its_writer(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "no room")

    folder = place(url)
    with Writer(folder) as writer:
        writer.write_all(BATCHES[0])
        with monkeypatch.context() as patch:
            patch.setattr("offrl_ray.records.os.write", full)
            with pytest.raises(DiskFull):
                writer.write_all(BATCHES[1])
        with pytest.raises(DiskFull):
            writer.write_all(BATCHES[2])
    assert told(records.read(folder).records) == flat(BATCHES[:2])
    assert told(fresh(folder)) == flat(BATCHES[:2])


@contextmanager
def crashing(number: int, step: str, when: str) -> Iterator[None]:
    """At the call of a number of a system call of the local file, or of the store."""
    if step == "pipe_file":
        with failing(**{when: at(number, Crash(), step)}):
            yield
        return
    real: Callable[..., Any] = getattr(os, step)
    fault = at(number + (step == "fsync"), Crash())  # one sync opens the writer

    def call(*args: Any) -> Any:
        if when == "before":
            fault(step, None)
        found = real(*args)
        if when == "after":
            fault(step, None)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"offrl_ray.records.os.{step}", call)
        yield


@pytest.mark.parametrize("machine_dies", [False, True])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", ["pipe_file", "write", "fsync"])
@pytest.mark.parametrize("number", range(3))
def test_after_any_crash_the_log_is_all_that_was_promised_and_at_most_one_batch_more(
    number: int, step: str, when: str, machine_dies: bool, url: str
) -> None:
    folder, promised = place(url), Records()
    with crashing(number, step, when), suppress(Crash), Writer(folder) as writer:
        for batch in BATCHES[:4]:
            writer.write_all(batch)
            promised += batch
    assert len(promised) < len(flat(BATCHES[:4]))
    if machine_dies:
        shutil.rmtree(store.copies())
    log = read(folder)
    at_most = next(n for n in range(4) if len(flat(BATCHES[:n])) == len(promised)) + 1
    assert told(log) in (promised, flat(BATCHES[:at_most]))
    with Writer(folder) as writer:
        writer.write_all(BATCHES[4])
    assert told(fresh(folder)) == [*told(log), *BATCHES[4]]


# -- reading


def filled(url: str) -> Path:
    folder = place(url)
    with Writer(folder) as writer:
        for batch in BATCHES[:4]:
            writer.write_all(batch)
    return folder


def test_only_what_is_new_is_fetched(url: str) -> None:
    folder = filled(url)
    kept = (folder / FILE).read_bytes()
    names = sorted(objects(url))
    (folder / FILE).write_bytes(b"".join(objects(url)[n] for n in names[:2]))
    asked: list[Any] = []
    with failing(before=lambda name, path: asked.append(path) if name == "cat" else None):
        records.read(folder)
    assert (folder / FILE).read_bytes() == kept
    assert [[p.rpartition("/")[2] for p in paths] for paths in asked] == [
        ["000000000002.jsonl"],
        ["000000000003.jsonl", "000000000004.jsonl"],
    ]


def damage(kind: str, content: bytes) -> bytes:
    changed = bytearray(content)
    changed[10] ^= 1
    return {"flipped": bytes(changed), "torn": content[:-3], "longer": content + b"{}\n", "": b""}[kind]


@pytest.mark.parametrize("kind", ["flipped", "torn", "longer", "another", ""])
def test_a_copy_that_is_not_the_stores_is_made_anew(kind: str, url: str) -> None:
    folder = filled(url)
    content = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(foreign(content) if kind == "another" else damage(kind, content))
    log, problems = records.read(folder)
    assert problems == []
    assert told(log) == flat(BATCHES[:4])
    assert (folder / FILE).read_bytes() == content


def foreign(content: bytes) -> bytes:
    """Of another sweep that was at the URL before, and of the same length."""
    log = [records.decode(line) for line in content.splitlines()]
    return b"".join(records.encode({**{k: v for k, v in r.items() if k != "crc"}, "time": r["time"] + 1}) for r in log)


def test_of_a_sweep_that_was_removed_from_the_store_nothing_is_left(url: str) -> None:
    folder = filled(url)
    fsspec.filesystem("memory").rm("/bucket", recursive=True)
    with pytest.raises(FileNotFoundError):
        records.read(folder)
    assert State.read(folder).plan is None


@pytest.mark.parametrize("kind", ["flipped", "torn", ""])
@pytest.mark.parametrize("number", [2, 4])
def test_a_damaged_segment_is_named_and_the_next_writer_goes_on(number: int, kind: str, url: str) -> None:
    folder = filled(url)
    name = f"records/{number:012d}.jsonl"
    fsspec.filesystem("memory").pipe_file(f"/bucket/runs/sweep/{name}", damage(kind, objects(url)[name]))
    shutil.rmtree(store.copies())
    log, problems = records.read(folder)
    assert told(log) == [r for i, r in enumerate(flat(BATCHES[:4])) if i != number]
    assert problems or (kind == "" and number == 4)
    with Writer(folder) as writer:
        writer.write_all(BATCHES[4])
    assert told(records.read(folder).records)[-1:] == BATCHES[4]


def test_a_copy_that_a_driver_keeps_is_left_to_it(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = filled(url)
    cut = (folder / FILE).read_bytes()[:-100]
    (folder / FILE).write_bytes(cut)
    monkeypatch.setattr(segments, "held", lambda lock: True)
    records.read(folder)
    assert (folder / FILE).read_bytes() == cut
    assert told(records.read(folder, driver=True).records) == flat(BATCHES[:4])


def test_the_sweeps_beside_one(url: str) -> None:
    folder = filled(url)
    for name in ("b", "a"):
        filled(f"memory://bucket/runs/{name}")
    fsspec.filesystem("memory").pipe_file("/bucket/runs/notes/text.txt", b"")
    shutil.rmtree(store.copies())
    assert beside(folder) == [place("memory://bucket/runs/a"), place("memory://bucket/runs/b")]


def test_a_neighbour_that_cannot_be_looked_at_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mine", "closed", "open"):
        ledgers.write(tmp_path / name, [ledgers.plan([ledgers.point("a")])])
    known = Path.exists

    def exists(path: Path) -> bool:
        if "closed" in path.parts:
            raise PermissionError(13, "closed", str(path))
        return known(path)

    monkeypatch.setattr(Path, "exists", exists)
    assert beside(tmp_path / "mine") == [tmp_path / "open"]


# -- a file system whose files are not whole from the first


class Disk(LocalFileSystem):  # type: ignore[misc]
    protocol = "disk"


def test_a_file_system_that_writes_bit_by_bit_shows_only_whole_files(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offrl_ray.objects._file_system", lambda url: (Disk(), str(tmp_path / "disk")))
    found = store.store(place("disk://host/x"))
    assert found
    found.create("records/0", b"a")
    found.create("records/0", b"a")
    with pytest.raises(Fenced):
        found.create("records/0", b"b")
    with failing(after=at(0, Crash(), "pipe_file")), pytest.raises(Crash):
        found.write("records/0", b"c")
    assert found.read("records/0") == [b"a"]
    found.write("records/0", b"c")
    assert found.read("records/0") == [b"c"]
