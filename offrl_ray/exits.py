"""What a command's exit code says: 0 done, 1 failed or left, 2 bad input, 74 disk full, 130 and 143 interrupted."""

import os
import sys
from collections.abc import Callable

from offrl_ray.errors import DiskFull, UsageError, plain

DISK_FULL = os.EX_IOERR


def exit_code(command: Callable[[], int]) -> int:
    """A command's own exit code, or the one of what it raised, told on the terminal."""
    try:
        return command()
    except UsageError as e:
        print(e.report(), file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except TimeoutError as e:
        print(plain(e), file=sys.stderr)
        return 1
    except OSError as e:
        if not DiskFull.caused(e):
            raise
        print(f"the disk is full: {plain(e)}", file=sys.stderr)
        return DISK_FULL
