"""The command that looks for what is wrong before a sweep does."""

import argparse
import json
from pathlib import Path
from typing import Any

from offrl_ray.errors import UsageError, plain

DOCTOR = (
    "One line a check: ok, warn or fail, what was found, and what mends it. Exits with 0 if nothing failed and 1 if "
    "something did. Without --address only this machine is looked at; starts no Ray."
)


def add_to(commands: Any) -> None:
    """`commands` is what argparse's add_subparsers returns."""
    about = "what is wrong with this machine, a cluster or a file, and what mends it"
    p = commands.add_parser("doctor", help=about, description=f"{about}. {DOCTOR}")
    p.add_argument("--address", help="a running Ray to join and look at: auto or HOST:PORT")
    p.add_argument("--data", metavar="FILE.h5", type=Path, help="a trajectory file")
    p.add_argument("--out", metavar="PLACE", default="runs", help="where results go, a folder or a URL (default: runs)")
    p.add_argument("--json", action="store_true", help="print one JSON object")
    p.set_defaults(command=_doctor)


def _doctor(args: argparse.Namespace) -> int:
    from offrl_ray.distributed import address

    if args.address is not None and (args.address == address.LOCAL or not address.valid(args.address)):
        raise UsageError([f"--address must be auto or HOST:PORT, but got {args.address!r}"])
    from offrl_ray.doctor import examine

    checks = []
    for check in examine(args.out, args.data, args.address):
        checks.append(check)
        if not args.json:
            print(plain(check), flush=True)
    failed = any(c.status == "fail" for c in checks)
    if args.json:
        print(json.dumps({"ok": not failed, "checks": [c._asdict() for c in checks]}))
    return int(failed)
