"""The console script offrl-ray; exits.py has its exit codes."""

import argparse

from offrl_ray import __version__
from offrl_ray.cli import data, doctor, folder, single
from offrl_ray.exits import exit_code

EPILOG = """\
sweeps are scripts: python tune_configs/tune_cpql.py --help

exit codes: 0 done; 1 trials failed or are open, or something is wrong; 2 bad input, nothing was started;
74 the disk is full; 130, 143, 129 interrupted by Ctrl-C, SIGTERM, a terminal that closes: what was done is saved
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    args = _parser().parse_args(argv)
    return exit_code(lambda: args.command(args))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="offrl-ray",
        description="Which offline-RL variant works on your robot data, and why do the others fail?",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    data.add_to(commands)
    single.add_to(commands)
    folder.add_to(commands)
    doctor.add_to(commands)
    return parser
