"""Who reads along may go; what is being done is not asked to."""

import signal
import subprocess
import sys

import pytest

from offrl_ray.terminal import end_signals

TWICE = "from offrl_ray.terminal import say; say('one', error={0}); say('two', error={0}); raise SystemExit(5)"
REFUSED = """
from offrl_ray.errors import UsageError
from offrl_ray.exits import exit_code

def refuse():
    raise UsageError(["no"])

raise SystemExit(exit_code(refuse))
"""


def unread(program: str, stream: str) -> subprocess.Popen[bytes]:
    """A program of which nobody reads what it writes to a stream."""
    process = subprocess.Popen([sys.executable, "-c", program], **{stream: subprocess.PIPE})
    getattr(process, stream).close()
    return process


@pytest.mark.parametrize(("stream", "error"), [("stdout", False), ("stderr", True)])
def test_a_reader_that_has_gone_ends_nothing(stream: str, error: bool) -> None:
    assert unread(TWICE.format(error), stream).wait(30) == 5


def test_bad_input_is_bad_input_without_a_reader() -> None:
    assert unread(REFUSED, "stderr").wait(30) == 2


def test_a_hangup_is_none_under_nohup() -> None:
    before = signal.getsignal(signal.SIGHUP)
    try:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        assert end_signals() == [signal.SIGTERM, signal.SIGHUP]
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        assert end_signals() == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGHUP, before)
