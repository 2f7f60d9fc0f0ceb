"""What opens when a reader points at a cell: its facts, and the curves of its seeds, as data that the page draws."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from results_analysis.curves import Quantity, series, thinned
from results_analysis.grid import point_text
from results_analysis.load import Seed, Trial
from results_analysis.tiles import of_trial, status, title, unit_text, written
from results_analysis.words import Say

Card = dict[str, Any]


def card(trial: Trial, measures: Sequence[str], quantities: Sequence[Quantity], say: Say) -> Card:
    """title, status, why, facts [[name, value]], curves {name, unit, log, steps, x, seeds {seed, y or null, stop}}."""
    facts = [[title(m, say), " ".join(written(m, e, say))] for m in measures if (e := of_trial(trial, m))]
    facts.append([say("finished seeds"), say("{n} of {planned}", n=len(trial.finished), planned=len(trial.seeds))])
    facts += [[say("trial"), trial.name], *([say("note"), n] for n in trial.notes)]
    curves = [_curve(trial, q.name, unit_text(q.unit, say), q.logarithmic) for q in quantities]
    word = say(status(trial))
    return {"title": point_text(trial), "status": word, "why": trial.reason, "facts": facts, "curves": curves}


def _curve(trial: Trial, name: str, unit: str, logarithmic: bool) -> Card:
    every = [(s, *series(s, name)) for s in trial.seeds]
    ends = [int(x[-1]) for s, x, _ in every if s.diverged is not None and len(x)]
    steps = [x for _, x, _ in every if len(x)]
    grid = thinned(np.unique(np.concatenate(steps)), ends) if steps else np.empty(0, dtype=int)
    seeds = [_seed(s, dict(zip(x.tolist(), y.tolist(), strict=True)), grid.tolist()) for s, x, y in every]
    return {"name": name, "unit": unit, "log": logarithmic, "steps": trial.steps, "x": grid.tolist(), "seeds": seeds}


def _seed(seed: Seed, values: dict[int, float], grid: list[int]) -> Card:
    y = [float(f"{values[x]:.4g}") if x in values else None for x in grid]
    return {"seed": seed.seed, "y": y, "stop": seed.diverged is not None}


def embed(cards: dict[str, Card], say: Say) -> str:
    """A script element that is data; no text in it can end it."""
    words = {"close": say("close"), "seed": say("seed"), "step": say("step"), "stopped": say("stopped by a rule")}
    words["none"] = say("no values yet")
    body = json.dumps({"words": words, "cards": cards}, separators=(",", ":"))
    for c in "<>&":
        body = body.replace(c, f"\\u{ord(c):04x}")
    return f'<script type="application/json" class="cells">{body}</script>\n'
