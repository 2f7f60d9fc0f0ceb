"""Who reads along may go; what is being done is not asked to."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from signal import SIGHUP, SIGINT, SIGTERM

import pytest

from offrl_ray.exits import exit_code
from offrl_ray.terminal import end_signals
from tests.conftest import REPOSITORY

TWICE = "from offrl_ray.terminal import say; say('one', error={0}); say('two', error={0}); raise SystemExit(5)"
REFUSED = """
from offrl_ray.errors import UsageError
from offrl_ray.exits import exit_code

def refuse():
    raise UsageError(["no"])

raise SystemExit(exit_code(refuse))
"""


FULL = """
import os, sys
from offrl_ray.terminal import say

os.set_blocking(1, False)
for i in range(2000):
    say(f"{i:0100}")
print("full", file=sys.stderr, flush=True)
sys.stdin.readline()
say("the last")
"""
SAVES = """
from tests.test_terminal import busy
from offrl_ray.terminal import exit_on_end_signals

exit_on_end_signals()
try:
    busy(20)
finally:
    busy(0.5)
    print("saved", flush=True)
"""
DRIVES = """
import types
from offrl_ray.distributed.draining import draining, handlers_kept
from offrl_ray.terminal import say
from tests.test_terminal import busy

conductor = types.SimpleNamespace(drain=lambda reason: None)
with handlers_kept(), draining(conductor) as code:
    busy(2)
    say("saved")
raise SystemExit(code[0])
"""
STUCK = DRIVES.replace("    busy(2)", "    [say(f'{i:0100}') for i in range(2000)]")
BUFFERED = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}


def busy(seconds: float) -> None:
    """Python code is what handlers interrupt."""
    print("ready", flush=True)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def signalled(program: str, signals: Sequence[int], pause: float) -> tuple[int, str]:
    """Exit code and output of a program that gets signals with pauses between them."""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=BUFFERED, cwd=REPOSITORY
    )
    assert process.stdout
    process.stdout.readline()
    for number in signals:
        process.send_signal(number)
        time.sleep(pause)
    text = process.stdout.read()
    return process.wait(30), text


def unread(program: str, stream: str) -> subprocess.Popen[bytes]:
    """A program of which nobody reads what it writes to a stream."""
    process = subprocess.Popen([sys.executable, "-c", program], env=BUFFERED, **{stream: subprocess.PIPE})
    getattr(process, stream).close()
    return process


@pytest.mark.parametrize(("stream", "error"), [("stdout", False), ("stderr", True)])
def test_a_reader_that_has_gone_ends_nothing(stream: str, error: bool) -> None:
    assert unread(TWICE.format(error), stream).wait(30) == 5


def test_bad_input_is_bad_input_without_a_reader() -> None:
    assert unread(REFUSED, "stderr").wait(30) == 2


def test_a_reader_that_is_slow_misses_some_and_not_all() -> None:
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen([sys.executable, "-c", FULL], env=BUFFERED, **pipes)
    assert process.stderr
    assert process.stdout
    assert process.stderr.readline() == b"full\n"
    os.read(process.stdout.fileno(), 1 << 20)
    out, _ = process.communicate(b"\n")
    assert out.endswith(b"the last\n")


def test_a_pipe_that_breaks_elsewhere_is_no_end_that_is_well() -> None:
    def lost() -> int:
        raise BrokenPipeError("a worker's socket")

    with pytest.raises(BrokenPipeError):
        exit_code(lost)


@pytest.mark.parametrize("pause", [0.0003, 0.2])
def test_a_shell_that_hangs_up_and_then_the_kernel_interrupt_no_saving(pause: float) -> None:
    assert signalled(SAVES, [SIGHUP, SIGHUP], pause) == (129, "ready\nsaved\n")


@pytest.mark.parametrize(
    ("signals", "pause", "code", "saved"),
    [
        ([SIGHUP, SIGHUP], 0.0003, 129, True),
        ([SIGHUP, SIGHUP], 1.2, 129, True),
        ([SIGTERM, SIGTERM], 0.0003, 143, True),
        ([SIGTERM, SIGTERM], 1.2, 143, False),
        ([SIGINT, SIGINT], 0.2, 130, False),
    ],
)
def test_what_ends_a_sweep_at_once(signals: list[int], pause: float, code: int, saved: bool) -> None:
    found, text = signalled(DRIVES if saved else DRIVES.replace("busy(2)", "busy(30)"), signals, pause)
    assert found == code, text
    assert ("saved" in text, "ended at once" in text) == (saved, not saved)
    assert f"{signal.Signals(signals[0]).name}: saving what runs" in text


def test_a_signal_finds_a_driver_in_the_middle_of_a_line() -> None:
    code, text = signalled(STUCK, [SIGINT], 0.3)
    assert code == 130
    assert "SIGINT: saving what runs" in text
    assert text.endswith("saved\n")


def test_a_hangup_is_none_under_nohup() -> None:
    before = signal.getsignal(signal.SIGHUP)
    try:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        assert end_signals() == [signal.SIGTERM, signal.SIGHUP]
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        assert end_signals() == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGHUP, before)
