"""Who drives a sweep on a store: told there again and again, so a driver is known to be gone when its machine is.

It spares people the confusion. What keeps two drivers apart is that no record can be written twice (segments.py).
"""

import json
import math
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any, NamedTuple

from offrl_ray.errors import UsageError
from offrl_ray.objects import Store, StoreError
from offrl_ray.store import store
from offrl_ray.terminal import say

FILE = "driver.json"
REQUESTS = "requests"
BEAT_SECONDS = 5.0
FRESH_SECONDS, STALE_SECONDS = 20.0, 60.0  # no older: a driver lives; older: none does, in between one may


class Holder(NamedTuple):
    host: str
    pid: int
    space: str  # where a pid means the same process
    token: str
    time: float  # of its newest word, in unix seconds of its own clock

    @property
    def age(self) -> float:
        """Infinite for a process that is known to be gone."""
        if self.space == _space() and not os.path.exists(f"/proc/{self.pid}"):
            return float("inf")
        return time.time() - self.time

    @property
    def who(self) -> str:
        return f"by process {self.pid!r} on {self.host!r}, which said so {max(0.0, self.age):.0f} s ago"


def _space() -> str:
    """This boot of this machine, and the container on it."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")


def _holder(at: Store) -> Holder | None:
    try:
        return Holder(**json.loads(at.read(FILE)[0]))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def driven(folder: Path) -> bool:
    """True if a driver, wherever it is, has told the folder's store of itself lately."""
    holder = _holder(at) if (at := store(folder)) else None
    return holder is not None and holder.age < STALE_SECONDS


class Lease:
    """Held from `take` to `release`. Meanwhile what the store is asked (requests.py) is brought to the working copy."""

    def __init__(self, folder: Path, at: Store):
        self._folder, self._at, self._token = folder, at._replace(patience=0.0), uuid.uuid4().hex
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="lease")

    def take(self) -> None:
        """Raises UsageError if another driver has it; one that has been silent is waited for."""
        seen = _holder(self._at)
        while seen and seen.age < STALE_SECONDS:
            if seen.age < FRESH_SECONDS:
                raise self._taken(seen.who)
            say(f"{self._at.url} was written {seen.who}; waiting until that is a minute", error=True)
            time.sleep(BEAT_SECONDS)
            seen = _holder(self._at)
        if seen and math.isfinite(seen.age) and self._beats(seen):
            raise self._taken(f"{seen.who} (its clock is behind ours, but it lives)")
        self._tell()
        self._thread.start()

    def _taken(self, who: str) -> UsageError:
        return UsageError([f"{self._at.url} is being written {who}; wait until it has ended, or `stop` it"])

    def _beats(self, seen: Holder) -> bool:
        """Clocks of two machines may differ; a word that changes is a sign of life by any."""
        time.sleep(2 * BEAT_SECONDS)
        now = _holder(self._at)
        return now is not None and now.time != seen.time

    def release(self) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        try:
            if (holder := _holder(self._at)) and holder.token == self._token:
                self._at.remove(FILE)
        except StoreError:  # it ends by itself
            return

    def _tell(self) -> None:
        about: dict[str, Any] = {"host": socket.gethostname(), "pid": os.getpid(), "space": _space()}
        content = json.dumps({**about, "token": self._token, "time": time.time()})
        self._at.write(FILE, content.encode())

    def _beat(self) -> None:
        while not self._over.wait(BEAT_SECONDS):
            try:
                holder = _holder(self._at)
                if holder is None or holder.token == self._token:
                    self._tell()
                for name in self._at.names(REQUESTS):
                    (self._folder / REQUESTS).mkdir(exist_ok=True)
                    (self._folder / REQUESTS / Path(name).name).touch()
            except (StoreError, OSError):  # the next time
                continue
