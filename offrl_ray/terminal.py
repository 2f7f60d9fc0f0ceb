"""Lines for a person, who may have gone, and signals of an end."""

import contextlib
import errno
import os
import signal
import sys
from typing import Any

GONE = (errno.EPIPE, errno.EIO, errno.EBADF)  # of a pipe that nobody reads, and of a terminal that is closed


def say(line: str, *, error: bool = False) -> None:
    """Print a line, or leave it out if it cannot be printed: nobody's reading along is worth the work that is done."""
    stream = sys.stderr if error else sys.stdout
    try:
        print(line, file=stream, flush=True)
    except OSError as e:
        if e.errno in GONE:  # else Python would fail at its end to print what is left
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, stream.fileno())
            os.close(nothing)


def say_from_handler(line: str) -> None:
    """`say` for a handler of signals, which may have interrupted `say`, and Python's streams are not reentrant."""
    with contextlib.suppress(OSError):
        os.write(sys.stdout.fileno(), f"{line}\n".encode())


def unread() -> bool:
    """True if nobody reads standard output any more."""
    try:
        print(flush=True)
    except BrokenPipeError:
        return True
    return False


def end_signals() -> list[signal.Signals]:
    """That of `kill`, and that of a terminal which is closed, unless nohup shields from it."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [signal.SIGTERM] if ignored else [signal.SIGTERM, signal.SIGHUP]


def exit_on_end_signals() -> None:
    """From now on the first of them is a SystemExit of 128 + its number, and no other interrupts what is saved then.

    More may come: a shell hangs up its jobs, and the kernel does it again when the shell has ended.
    """
    signals = end_signals()

    def end(number: int, frame: Any) -> None:
        for s in signals:
            signal.signal(s, signal.SIG_IGN)
        sys.exit(128 + number)

    for s in signals:
        signal.signal(s, end)
