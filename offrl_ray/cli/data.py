"""Commands on trajectory files: make them, look at them."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offrl_ray.errors import plain
from offrl_ray.store import local_path
from offrl_ray.terminal import exit_on_end_signals, say

if TYPE_CHECKING:
    from offrl_ray.collect.parts import Ask
    from offrl_ray.collect.replayed import Summary

COLLECTABLE = (
    "LiftPegUpright-v1, PickCube-v1 or PushCube-v1, which have a scripted expert, or CartPole-v1, "
    "where everything is recorded that an online double DQN lives through"
)
REPLAY = (
    "Around ManiSkill's own replayer: state observations and rewards are recorded, the control mode is converted where "
    "that is possible (from pd_joint_pos, on physx_cpu). Exits with 1 if nothing succeeds any more."
)
FETCH = (
    "Downloads once, into ManiSkill's own folder ($MS_ASSET_DIR or ~/.maniskill), and replays the file that needs the "
    "least change. Exits with 1 if it cannot be downloaded."
)


def add_to(commands: Any) -> None:
    """`commands` is what argparse's add_subparsers returns."""
    p = commands.add_parser("collect", help="record demonstrations of a scripted expert or an online learner")
    p.add_argument("--env-id", required=True, help=COLLECTABLE)
    p.add_argument("--episodes", type=int, default=200)
    p.add_argument(
        "--noise",
        type=_numbers,
        default=(),
        help="standard deviations of a scripted expert's action noise, in turn: 0,0.1,0.3 (default: 0)",
    )
    p.add_argument("--seed", type=int, default=0, help="episode i starts from seed + i")
    p.add_argument("--out", type=local_path, required=True, help="FILE.h5; FILE.json is written beside it")
    p.add_argument("--workers", type=int, help="processes of a scripted expert; the file does not depend on them")
    p.set_defaults(command=_collect)

    about = "look at trajectory files, or make them from official ones"
    data = commands.add_parser("data", help=about).add_subparsers(required=True, metavar="COMMAND")
    p = data.add_parser("check", help="what is in a file, and everything that is wrong with it")
    p.add_argument("file", type=Path)
    p.add_argument("--control-mode", help="needed control mode (default: the file's own)")
    p.add_argument("--reward-mode", help="needed reward mode (default: the file's own)")
    p.add_argument("--json", action="store_true", help="print one JSON object")
    p.set_defaults(command=_check)

    about = "make a file to train on from a raw one of ManiSkill's"
    p = data.add_parser("replay", help=about, description=f"{about}. {REPLAY}")
    p.add_argument("file", metavar="RAW.h5", type=Path, help="with its .json beside it; it is not changed")
    _replay_options(p)
    p.set_defaults(command=_replay)

    about = "make a file to train on from a task's official demonstrations"
    p = data.add_parser("fetch", help=about, description=f"{about}. {FETCH}")
    p.add_argument("env_id", metavar="ENV", help="such as PickCube-v1")
    p.add_argument("--source", metavar="NAME", help="rl, motionplanning or teleop (default: what needs least change)")
    _replay_options(p)
    p.set_defaults(command=_fetch)


def _replay_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("--out", type=local_path, required=True, help="FILE.h5; FILE.json is written beside it")
    p.add_argument("--control-mode", default="pd_ee_delta_pose", help="of the new file (default: pd_ee_delta_pose)")
    p.add_argument("--reward-mode", default="sparse", help="rewards to record (default: sparse)")
    p.add_argument("--sim-backend", default="physx_cpu", help="physx_cpu (default) or physx_cuda: as you will evaluate")
    p.add_argument("--episodes", metavar="N", type=int, help="the first N (default: all)")
    p.add_argument("--workers", metavar="N", type=int, help="processes of physx_cpu (default: one per core)")
    p.add_argument("--only-successes", action="store_true", help="leave out episodes that fail (default: keep them)")


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(x) for x in text.split(","))


def _collect(args: argparse.Namespace) -> int:
    from offrl_ray.collect import collect

    exit_on_end_signals()  # it leaves nothing half done
    summary = collect(args.env_id, args.episodes, args.noise, args.seed, args.out, workers=args.workers, progress=say)
    say(str(summary))
    return 0


def _check(args: argparse.Namespace) -> int:
    from offrl_ray.data import hdf5

    found = hdf5.inspect(args.file, control_mode=args.control_mode, reward_mode=args.reward_mode)
    summary = found.summary()
    if args.json:
        print(json.dumps(summary))
    else:
        for key, value in summary.items():
            if key != "problems":
                shown = " ".join(f"{v:.3g}" for v in value) if key.startswith("action_") else value
                print(f"{key:13} {plain(shown)}")
        print("problems      " + ("\n".join(f"\n- {plain(p)}" for p in found.problems) or "none"))
    return 2 if found.problems else 0


def _replay(args: argparse.Namespace) -> int:
    from offrl_ray.collect.replayed import replay

    return _made(lambda ask: replay(args.file, args.out, ask, say), args)


def _fetch(args: argparse.Namespace) -> int:
    from offrl_ray.collect.official import fetch

    return _made(lambda ask: fetch(args.env_id, args.out, ask, args.source, say), args)


def _made(make: "Callable[[Ask], Summary]", args: argparse.Namespace) -> int:
    from offrl_ray.collect.official import FetchError
    from offrl_ray.collect.parts import Ask, ReplayError

    exit_on_end_signals()  # it ends the replayers, and leaves nothing
    modes = (args.control_mode, args.reward_mode, args.sim_backend)
    try:
        summary = make(Ask(*modes, args.episodes, args.workers, args.only_successes))
    except (FetchError, ReplayError) as e:
        say("\n".join(map(plain, str(e).splitlines())), error=True)
        return 1
    say("\n".join(map(plain, str(summary).splitlines())))
    return 0
