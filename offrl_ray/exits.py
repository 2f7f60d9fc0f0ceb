"""What a command's exit code says: 0 done, 1 failed or left, 2 bad input, 74 disk full, 129, 130, 143 interrupted."""

import os
import sys
from collections.abc import Callable

from offrl_ray.errors import DiskFull, UsageError, plain
from offrl_ray.terminal import say, unread

DISK_FULL = os.EX_IOERR


def exit_code(command: Callable[[], int]) -> int:
    """A command's own exit code, or the one of what it raised, told on the terminal."""
    try:
        return command()
    except UsageError as e:
        say(e.report(), error=True)
        return 2
    except BrokenPipeError:
        if not unread():
            raise
        # the reader of a command that only tells, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        say("interrupted", error=True)
        return 130
    except TimeoutError as e:
        say(plain(e), error=True)
        return 1
    except OSError as e:
        if not DiskFull.caused(e):
            raise
        say(f"the disk is full: {plain(e)}", error=True)
        return DISK_FULL
