"""Commands on one run, one checkpoint, one variant."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offrl_ray import __version__
from offrl_ray.errors import UsageError
from offrl_ray.store import local_path
from offrl_ray.terminal import exit_on_end_signals, say

if TYPE_CHECKING:
    from offrl_ray.config import RunConfig
    from offrl_ray.run import Data

TRIAL = "train"


def add_to(commands: Any) -> None:
    """`commands` is what argparse's add_subparsers returns."""
    p = commands.add_parser("train", help="train one point, without Ray")
    p.add_argument("variant")
    p.add_argument("--data", action="append", default=[], help="trajectory file; repeat for more")
    p.add_argument("--out", type=local_path, required=True, help="folder of the run; an unfinished one is continued")
    p.add_argument("--steps", type=int, help="updates")
    p.add_argument("--seeds", type=_integers, help="members trained together: 0,1,2")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any setting: algo.alpha=0.05")
    p.set_defaults(command=_train)

    p = commands.add_parser("evaluate", help="roll a checkpoint's policies out")
    p.add_argument("checkpoint", type=local_path, help="a folder step_...")
    p.add_argument("--episodes", type=int, default=50)
    p.add_argument("--seed", type=int, default=10_000, help="episode i starts from seed + i")
    p.add_argument("--json", action="store_true", help="print one JSON object with every episode")
    p.set_defaults(command=_evaluate)

    p = commands.add_parser("describe", help="every setting of a variant: default, range, meaning, may it be swept")
    p.add_argument("variant", nargs="?", help="default: all of them")
    p.add_argument("--json", action="store_true", help="print one JSON object, variant -> about and settings")
    p.set_defaults(command=_describe)


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(x) for x in text.split(","))


def _train(args: argparse.Namespace) -> int:
    from contextlib import closing

    from offrl_ray import records, run
    from offrl_ray.config import digest
    from offrl_ray.data.replay import prior
    from offrl_ray.evaluate import LocalEvaluator, open_env
    from offrl_ray.sweep.ledger import Ledger
    from offrl_ray.sweep.plan import Point

    cfg, data = _checked(args)
    folder, env = args.out / "trials" / TRIAL, open_env(cfg.env)
    exit_on_end_signals()  # the run saves itself
    with Ledger(args.out) as ledger:
        ledger.check({"digest": digest(cfg), "data": data.files})
        if ledger.state.plan is None:
            point = Point(TRIAL, {}, cfg, 0).record()
            plan = {"name": args.variant, "question": "", "axes": {}, "points": [point], "digest": digest(cfg)}
            plan |= {"data": data.files, "claims": [], "confirms": None}
            ledger.write([{"kind": "plan", **plan, "versions": {"offrl-ray": __version__}}])
        trial = ledger.state.trials[TRIAL]
        if trial.ended and trial.status != "failed":
            say(f"{args.out}: this run has ended; nothing to do")
            return 0
        if trial.ended:
            ledger.write([{"kind": "retry", "trial": TRIAL}])
        attempt = trial.attempt + 1
        began, first = time.monotonic(), None
        dataset = prior(data.arrays, data.spec, cfg.train.device)
        evaluator, known = LocalEvaluator(lambda: env), (trial.evaluated(), trial.reported)
        with closing(run.run(cfg, dataset, folder, evaluator, TRIAL, *known)) as updates:
            for update in updates:
                ledger.write([{**record, "attempt": attempt} for record in update.records])
                for line in filter(None, map(_line, update.records)):
                    say(line)
                first = update.step if first is None else first
                if first < update.step < cfg.train.steps:
                    left = (time.monotonic() - began) * (cfg.train.steps - update.step) / (update.step - first)
                    say(f"{update.step}/{cfg.train.steps} updates, about {left:.0f} s left")
    say(f"records: {args.out / records.FILE}\ncheckpoints: {folder}")
    return 0 if trial.status == "completed" else 1


def _checked(args: argparse.Namespace) -> "tuple[RunConfig, Data]":
    """Config and data, or every problem of both."""
    import torch

    from offrl_ray import run
    from offrl_ray.config import parse_assignments, resolve, worded
    from offrl_ray.sweep.ledger import place_problems

    assignments, problems = parse_assignments(args.set)
    problems += place_problems(args.out)
    flags = {"train.steps": args.steps, "train.seeds": args.seeds}
    flat: dict[str, Any] = {"algo.name": args.variant, "data.files": [str(Path(f).resolve()) for f in args.data]}
    flat |= {k: v for k, v in flags.items() if v is not None} | assignments
    try:
        flat = worded(args.variant, flat)
        cfg = resolve(flat)
    except UsageError as e:
        raise UsageError(problems + e.problems + run.data_problems(flat)) from None
    try:
        torch.zeros((), device=cfg.train.device)
    except (RuntimeError, AssertionError) as e:
        problems.append(f"train.device {cfg.train.device!r} cannot be used here: {str(e).splitlines()[0]}")
    if problems:
        raise UsageError(problems + run.data_problems(flat))
    data = run.load_data(cfg)
    return run.in_env(cfg, data.env_id), data


def _values(means: dict[str, float]) -> str:
    """What the critic foretold beside what came, where there is a critic."""
    return "".join(f", {k} {means[k]:.4g}" for k in ("q_start", "discounted_return", "q_gap") if k in means)


def _line(record: dict[str, Any]) -> str:
    from offrl_ray.sweep.state import means

    if record["kind"] == "eval":
        m = means(record)
        rates = ", ".join(f"{k} {m[k]:.2f}" for k in ("success_once", "success_at_end"))
        return f"  step {record['step']} seed {record['seed']}: {rates}, return {m['return']:.4g}{_values(m)}"
    if record["kind"] == "train":
        m = record["metrics"]
        shown = ", ".join(f"{k} {m[k]:.4g}" for k in ("policy_loss", "critic_loss", "q_mean") if k in m)
        return f"  step {record['step']} seed {record['seed']}: {shown}"
    if record["kind"] == "end":
        return f"{record['status']} {record['reason']}".rstrip()
    return record.get("text", "")


def _evaluate(args: argparse.Namespace) -> int:
    import dataclasses

    from offrl_ray import checkpoint
    from offrl_ray.evaluate import EvalRequest, evaluate_members, is_finite, open_env
    from offrl_ray.intervals import wilson
    from offrl_ray.policy import acting_and_critic
    from offrl_ray.records import strict
    from offrl_ray.run import eval_record
    from offrl_ray.sweep.state import means

    if args.episodes < 1 or args.seed < 0:
        raise UsageError([f"--episodes must be >= 1 and --seed >= 0, but got {args.episodes} and {args.seed}"])
    found = checkpoint.load(args.checkpoint)
    cfg = dataclasses.replace(
        found.cfg, eval=dataclasses.replace(found.cfg.eval, episodes=args.episodes, seed=args.seed)
    )
    members = {s: acting_and_critic(found.snapshot.state, i) for i, s in enumerate(cfg.train.seeds)}
    diverged = [s for s, state in members.items() if not is_finite(state["acting"])]
    for s in diverged:
        print(f"seed {s} has diverged and is not evaluated", file=sys.stderr)
        del members[s]
    result = evaluate_members(
        EvalRequest(found.snapshot.step, found.digest, cfg, found.spec, members), open_env(cfg.env)
    )
    if args.json:
        episodes = {str(s): e._asdict() for s, e in result.episodes.items()}
        print(json.dumps(strict({"checkpoint": str(args.checkpoint), "digest": found.digest, "seeds": episodes})))
        return 0
    print(f"{args.checkpoint}: {cfg.env.id}, {args.episodes} episodes from seed {args.seed}; 95 % Wilson intervals")
    for seed, e in result.episodes.items():
        rates = []
        for name, hits in (("success_once", sum(e.success_once)), ("success_at_end", sum(e.success_at_end))):
            low, high = wilson(hits, args.episodes)
            rates.append(f"{name} {hits / args.episodes:.2f} [{low:.2f}, {high:.2f}]")
        m = means(eval_record(cfg, "", seed, result))
        print(f"seed {seed}: {', '.join(rates)}, return {m['return']:.2f}, length {m['length']:.1f}{_values(m)}")
    return 0


def _describe(args: argparse.Namespace) -> int:
    from offrl_ray.algos import VARIANTS
    from offrl_ray.config import describe

    names = list(VARIANTS) if args.variant is None else [args.variant]
    rows = {name: describe(name) for name in names}
    about = {name: sys.modules[VARIANTS[name][0].__module__].__doc__ or "" for name in names}
    if args.json:
        found = {n: {"about": about[n], "settings": [r._asdict() for r in rows[n]]} for n in names}
        print(json.dumps(found, default=str))
        return 0
    if args.variant is None:
        for name in names:
            print(f"{name:12} {about[name].splitlines()[0]}")
        print("`offrl-ray describe VARIANT` lists its settings, formulas and sources")
        return 0
    print(about[args.variant])
    print("S: may differ between points that train in one stack (algo.*), at no cost of a rebuild\n")
    for r in rows[args.variant]:
        print(f"{r.key:28} {r.default!s:16} {'S' if r.swept else ' '} {r.range:32} {r.meaning}")
    return 0
