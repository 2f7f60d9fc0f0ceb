"""Signals of an end while a sweep runs: the first lets all trials save themselves, a later one may end it at once."""

import contextlib
import signal
import time
from collections.abc import Iterator
from typing import Any

from offrl_ray.sweep.conductor import Conductor
from offrl_ray.terminal import end_signals, say, say_from_handler

TWICE_SECONDS = 1.0  # `timeout` signals its child, and its child's group


@contextlib.contextmanager
def handlers_kept() -> Iterator[None]:
    """Those of before are there again afterwards. Ray sets one, too."""
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


@contextlib.contextmanager
def draining(conductor: Conductor) -> Iterator[list[int]]:
    """The first signal lets all trials save themselves and end; another Ctrl-C or SIGTERM leaves this block at once.

    A terminal that closes says so more than once, and never means that. Yields the exit code, once there is one; the
    handlers stay, until `handlers_kept`.
    """
    code: list[int] = []
    began = 0.0

    def drain(number: int, frame: Any) -> None:
        nonlocal began
        if not code:
            began, name = time.monotonic(), signal.Signals(number).name
            code.append(128 + number)
            conductor.drain(name)
            say_from_handler(f"{name}: saving what runs; the same command goes on (once more: end now)")
        elif number == signal.SIGINT or (number == signal.SIGTERM and time.monotonic() - began > TWICE_SECONDS):
            raise KeyboardInterrupt

    for s in (signal.SIGINT, *end_signals()):
        signal.signal(s, drain)
    try:
        yield code
    except KeyboardInterrupt:
        say("ended at once; what has no checkpoint yet is trained again")
