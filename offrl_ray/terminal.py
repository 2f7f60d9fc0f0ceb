"""Lines for a person, who may have gone, and signals of an end."""

import os
import signal
import sys


def say(line: str, *, error: bool = False) -> None:
    """Print a line. If it cannot be, as the terminal or the reader has gone, it and all that follow are left out."""
    stream = sys.stderr if error else sys.stdout
    try:
        print(line, file=stream, flush=True)
    except OSError:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, stream.fileno())
        os.close(nothing)


def end_signals() -> list[signal.Signals]:
    """That of `kill`, and that of a terminal which is closed, unless nohup shields from it."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [signal.SIGTERM] if ignored else [signal.SIGTERM, signal.SIGHUP]
