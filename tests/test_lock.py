"""Who owns a sweep's folder."""

import fcntl
import os
import threading
from pathlib import Path

import pytest

from offrl_ray.errors import UsageError
from offrl_ray.sweep.ledger import LOCK, Ledger


def test_a_driver_waits_out_who_only_looks(tmp_path: Path) -> None:
    """`status` and `fsck` have the lock for an instant; a driver that starts just then must not be turned away."""
    fd = os.open(tmp_path / LOCK, os.O_RDONLY | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_SH)
    threading.Timer(0.2, os.close, [fd]).start()
    Ledger(tmp_path).close()


def test_a_second_driver_is_refused_until_the_first_has_gone(tmp_path: Path) -> None:
    with Ledger(tmp_path) as first:
        first.write([{"kind": "session", "host": "here", "pid": 7, "argv": [], "versions": {}}])
        with pytest.raises(UsageError, match="by process 7 on 'here' since"):
            Ledger(tmp_path)
    Ledger(tmp_path).close()
