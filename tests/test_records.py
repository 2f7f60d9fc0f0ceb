import json
import math
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from offrl_ray.errors import DiskFull
from offrl_ray.records import FILE, TORN, VERSION, Writer, decode, encode, read, sync
from tests.conftest import overwrite

RECORDS: list[dict[str, Any]] = [
    {"kind": "plan", "name": 'ünïcode, "quotes" and \\ \n new lines', "axes": {"algo.alpha": [0.0, 0.1]}, "points": []},
    {"kind": "train", "trial": "00", "seed": 0, "step": 10, "metrics": {"a": math.nan, "b": math.inf, "c": -math.inf}},
    {"kind": "eval", "trial": "00", "seed": 0, "success_once": [0, 1], "return": [0.1, 1e-300], "none": None},
    {"kind": "end", "trial": "00", "status": "completed", "nested": [[math.nan, {"x": [1, 2]}]]},
]


NOW = 1_700_000_000.125


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offrl_ray.records.time.time", lambda: NOW + 1e-5)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    with Writer(tmp_path) as w:
        for r in RECORDS:
            w.write(**r)
    return tmp_path


def strict(value: Any) -> Any:
    """A record as the format keeps it: numbers that are not finite as their names."""
    return json.loads(json.dumps(value), parse_constant={"NaN": "nan", "Infinity": "inf", "-Infinity": "-inf"}.get)


EXPECTED = [{"v": VERSION, "seq": i, "time": NOW, **strict(r)} for i, r in enumerate(RECORDS)]


def test_what_was_written_is_read_back(written: Path) -> None:
    assert read(written) == (EXPECTED, [])


def test_float_reads_the_numbers_that_are_not_finite(written: Path) -> None:
    metrics = read(written).records[1]["metrics"]
    assert math.isnan(float(metrics["a"]))
    assert (float(metrics["b"]), float(metrics["c"])) == (math.inf, -math.inf)


def test_every_line_is_strict_json(written: Path) -> None:
    for line in (written / FILE).read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


def test_no_records_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read(tmp_path)


def test_any_changed_byte_of_a_line_is_found() -> None:
    line = encode(
        {"v": VERSION, "seq": 0, "kind": "train", "seed": 0, "metrics": {"q": -1.5e-3, "n": "nan", "ok": True}}
    )
    assert decode(line)["metrics"]["q"] == -1.5e-3
    unnoticed = []
    for i in range(len(line) - 1):
        for byte in set(range(256)) - {line[i]}:
            try:
                decode(line[:i] + bytes([byte]) + line[i + 1 :])
                unnoticed.append((i, byte))
            except ValueError:
                pass
    assert unnoticed == []


def test_a_changed_byte_in_a_file_costs_at_most_the_two_lines_it_touches(written: Path) -> None:
    path = written / FILE
    content = path.read_bytes()
    for i in range(len(content)):
        for byte in (content[i] ^ 1, ord("\r")):
            overwrite(path, content[:i] + bytes([byte]) + content[i + 1 :])
            log = read(written)
            assert [r for r in log.records if r not in EXPECTED] == []
            assert len(log.records) >= len(EXPECTED) - (2 if content[i : i + 1] == b"\n" else 1)
            assert log.problems


def test_a_damaged_line_is_named_by_its_number(written: Path) -> None:
    path = written / FILE
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1].replace(b"nan", b"1.0") + b"".join(lines[2:]))
    records, problems = read(written)
    assert records == [EXPECTED[0], *EXPECTED[2:]]
    assert problems == [f"{path}:2: checksum differs"]


@pytest.mark.parametrize(
    "line", [b"\n", b"{}\n", b"[]\n", b"1\n", b'{"crc":1}\n', b"\xff\xfe\n", b"{" * 10 + b"\n", b"[" * 100_000 + b"\n"]
)
def test_a_foreign_line_is_named_and_never_raised(line: bytes, written: Path) -> None:
    path = written / FILE
    path.write_bytes(path.read_bytes() + line)
    log = read(written)
    assert log.records == EXPECTED
    assert len(log.problems) == 1
    assert log.problems[0].startswith(f"{path}:5: ")


def test_another_version_is_named(written: Path) -> None:
    path = written / FILE
    path.write_bytes(path.read_bytes() + encode({"v": VERSION + 1, "seq": 4, "kind": "end"}))
    assert read(written).problems == [f"{path}:5: record version {VERSION + 1}, this reader knows {VERSION}"]


def test_a_cut_at_any_byte_of_the_last_two_records_loses_nothing_before_it(
    written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # hundreds of times, and no kill follows
    path = written / FILE
    content = path.read_bytes()
    ends = [i + 1 for i, b in enumerate(content) if b == ord("\n")]
    for cut in range(ends[-3], len(content) + 1):
        path.write_bytes(content[:cut])
        whole = sum(e <= cut for e in ends)
        before = read(written)
        assert before.records[:whole] == EXPECTED[:whole]
        assert [p for p in before.problems if "torn end" not in p] == []
        with Writer(written) as w:
            w.write("note", trial="00", text="after the cut")
        after = read(written)
        assert after.problems == []
        assert after.records[:-1] == EXPECTED[: len(after.records) - 1]
        assert (after.records[-1]["text"], after.records[-1]["seq"]) == ("after the cut", len(after.records) - 1)
        torn = content[max([0, *(e for e in ends if e <= cut)]) : cut]
        assert (written / TORN).exists() == bool(torn)
        if torn:
            assert (written / TORN).read_bytes() == torn + b"\n"
            (written / TORN).unlink()


def test_a_record_that_was_read_survives_the_next_writer(written: Path) -> None:
    path = written / FILE
    path.write_bytes(path.read_bytes()[:-1])  # killed between a line and its end
    seen = read(written).records
    Writer(written).close()
    assert read(written).records == seen


def test_sequence_numbers_continue_over_writers(tmp_path: Path) -> None:
    for _ in range(3):
        with Writer(tmp_path) as w:
            w.write("note", trial="a", text="")
            w.write("note", trial="a", text="")
    assert [r["seq"] for r in read(tmp_path).records] == list(range(6))


def test_a_new_number_is_not_one_of_a_damaged_line_at_the_end(written: Path) -> None:
    path = written / FILE
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b"x\n", b"x\n"]))
    with Writer(written) as w:
        w.write("note", trial="00", text="")
    assert [r["seq"] for r in read(written).records] == [0, 1, 4]


def failing(times: int, original: Callable[..., Any], effect: Callable[..., Any]) -> Callable[..., Any]:
    """`effect` for the first calls, then the original."""
    calls = iter(range(times))
    return lambda *args: original(*args) if next(calls, None) is None else effect(*args)


@pytest.mark.parametrize("keep", [0, 1, 20, -1])
def test_a_write_in_part_is_taken_back(keep: int, written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    with Writer(written) as w:
        monkeypatch.setattr(os, "write", failing(1, write, lambda fd, line: write(fd, line[:keep])))
        with pytest.raises(DiskFull, match="record 4 did not fit"):
            w.write("note", trial="00", text="lost")
        assert read(written) == (EXPECTED, [])
        w.write("note", trial="00", text="kept")
    log = read(written)
    assert (log.problems, log.records[-1]["seq"], log.records[-1]["text"]) == ([], 4, "kept")


@pytest.mark.parametrize("error", [OSError(5, "disk"), OSError(28, "disk"), KeyboardInterrupt("stop")], ids=repr)
def test_a_write_that_could_not_be_synced_leaves_no_second_record_of_its_number(
    error: BaseException, written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(fd: int) -> None:
        raise error

    with Writer(written) as w:
        monkeypatch.setattr(os, "fsync", failing(1, os.fsync, broken))
        with pytest.raises(type(error), match=r"disk|stop"):
            w.write("note", trial="00", text="perhaps")
        w.write("note", trial="00", text="kept")
    log = read(written)
    assert ([r["seq"] for r in log.records], log.problems) == (list(range(5)), [])
    assert log.records[-1]["text"] == "kept"


def test_a_full_disk_leaves_no_torn_line(tmp_path: Path) -> None:
    """In a process whose files may not grow beyond 2000 bytes."""
    program = f"""
import resource, signal
from offrl_ray.errors import DiskFull
from offrl_ray.records import Writer
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
w = Writer({str(tmp_path)!r})
for i in range(100):
    try:
        w.write("note", trial="00", text="x" * 50)
    except DiskFull:
        print(i)
        break
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    written = int(done.stdout)
    log = read(tmp_path)
    assert 0 < written < 20
    assert (log.problems, len(log.records)) == ([], written)


def test_a_record_is_durable_with_its_file_and_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    fsync = os.fsync
    kind = lambda fd: "folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file"  # noqa: E731
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(kind(fd)), fsync(fd)))
    with Writer(tmp_path / "new") as w:
        w.write("note", trial="00", text="")
    assert set(synced) == {"file", "folder"}


def test_several_records_are_one_write_and_one_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    with Writer(tmp_path) as w:
        for name in ("write", "fsync"):
            original = getattr(os, name)
            monkeypatch.setattr(os, name, lambda *a, n=name, f=original: (calls.append(n), f(*a))[1])
        w.write_all(RECORDS)
        w.write_all([])
    assert calls[:2] == ["write", "fsync"]
    assert len(calls) == 2
    assert read(tmp_path) == (EXPECTED, [])


@pytest.mark.parametrize("keep", [1, 150, -1])
def test_several_records_are_taken_back_together(keep: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    with Writer(tmp_path) as w:
        monkeypatch.setattr(os, "write", failing(1, write, lambda fd, lines: write(fd, lines[:keep])))
        with pytest.raises(DiskFull):
            w.write_all(RECORDS)
        assert read(tmp_path) == ([], [])
        w.write_all(RECORDS)
        w.write("note", trial="00", text="next")
    records, problems = read(tmp_path)
    assert (records[:-1], problems, records[-1]["seq"]) == (EXPECTED, [], len(RECORDS))


def test_number_and_time_are_the_writers_whatever_a_record_says(tmp_path: Path) -> None:
    with Writer(tmp_path) as w:
        w.write_all([{"kind": "note", "seq": 7, "time": 1.0, "v": 3, "text": "copied"}])
    assert read(tmp_path) == ([{"v": VERSION, "seq": 0, "time": NOW, "kind": "note", "text": "copied"}], [])


@pytest.mark.parametrize(
    ("order", "named"),
    [([0, 2, 3], ["2: record 2 comes after record 0"]), ([1, 2], ["1: record 1 comes after record -1"])]
    + [([0, 1, 1, 2], ["3: record 1 comes after record 1"]), ([0, 2, 1], ["2: record 2", "3: record 1"])],
)
def test_lines_taken_out_doubled_or_moved_are_named(order: list[int], named: list[str], written: Path) -> None:
    path = written / FILE
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[i] for i in order))
    log = read(written)
    assert [r["seq"] for r in log.records] == order
    assert [p.startswith(f"{path}:{n}") for p, n in zip(log.problems, named, strict=True)] == [True] * len(named)


def test_a_repeated_number_behind_a_damaged_line_is_named_too(written: Path) -> None:
    path = written / FILE
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1] + b"x\n" + lines[1] + lines[2] + b"x\n" + lines[3])
    assert [p.partition(f"{path}:")[2] for p in read(written).problems] == [
        "3: not a record",
        "4: record 1 comes after record 1",
        "6: not a record",
    ]


def test_a_record_without_a_number_is_named(written: Path) -> None:
    with (written / FILE).open("ab") as f:
        f.write(encode({"v": VERSION, "kind": "note"}))
    assert read(written).problems == [f"{written / FILE}:5: no number"]


@pytest.mark.parametrize(("number", "raised"), [(5, True), (28, True), (22, False), (95, False)])
def test_a_failing_disk_is_told_and_a_file_system_that_syncs_no_folders_is_not(
    number: int, raised: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(fd: int) -> None:
        raise OSError(number, "sync")

    file = tmp_path / "file"
    file.touch()
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="sync"):
        sync(file)
    if raised:
        with pytest.raises(OSError, match="sync"):
            sync(tmp_path)
    else:
        sync(tmp_path)
