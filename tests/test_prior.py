import json
from typing import Any

from offrl_ray.sweep.plan import Demos, Plan, Preset, Sweep, plan
from offrl_ray.sweep.prior import priors
from offrl_ray.sweep.space import Choice, Float
from offrl_ray.sweep.spec import Objective, SearchSpec
from offrl_ray.sweep.state import COLUMNS, State
from tests.conftest import TINY

LR, ALPHA, LOSS = "algo.lr", "algo.alpha", "algo.q_grad_mode"


def work(*objectives: str, **spec: Any) -> Plan:
    """Cells of alpha 0.01 and 0.05, a learning rate and a mode to search in each."""
    axes = {ALPHA: [0.01, 0.05], LR: Float(1e-4, 1e-2), LOSS: Choice(["single_step", "whole_grad"])}
    preset = Preset(about="", overrides=TINY, demos=Demos(env_id="Toy-v1", episodes=1))
    sweep = Sweep(name="toy", question="", variant="cpql", axes=axes, presets={"toy": preset})
    aims = tuple(Objective.parse(o) for o in objectives or ("success_once",))
    return plan(sweep, "toy", {}, ["a.h5"], SearchSpec("tpe", 4, 0, aims))


def other(**ends: tuple[dict[str, Any], str | None]) -> State:
    """Trials by name: their points, and the status in which they ended."""
    points = [
        {"trial": t, "point": p, "config": {}, "seeds": [0, 1], "steps": 4, "cell": 0} for t, (p, _) in ends.items()
    ]
    state = State([{"kind": "plan", "points": points}])
    for trial, (_, status) in ends.items():
        for seed in (0, 1):
            fields = {"trial": trial, "attempt": 1, "seed": seed, "step": 4}
            metrics = {"q_mean": 1.0 + seed, "q_bound_high": 1.0}
            state.add({"kind": "train", **fields, "metrics": metrics, "seconds": 1.0})
            hits = {k: [seed, 1] for k in COLUMNS}
            state.add({"kind": "eval", **fields, "members": [0, 1], "episodes": 2, **hits})
        if status:
            end = {"trial": trial, "attempt": 1, "step": 4, "failure": "", "reason": "why", "cost": {}}
            state.add({"kind": "end", **end, "status": status, "diverged": {}})
    return state


GOOD = {LR: 1e-3, LOSS: "whole_grad"}


def test_a_result_is_a_hint_for_every_cell_that_it_does_not_contradict() -> None:
    found = priors(work(), other(a=({ALPHA: 0.05, **GOOD}, "completed"), b=(GOOD, "pruned")))
    assert [(p["cell"], p["number"], p["from"]) for p in found] == [(0, -1, "b"), (1, -2, "a"), (1, -3, "b")]
    assert all(p["params"] == GOOD for p in found)
    assert found[1]["outcome"] == {
        "status": "completed",
        "values": (0.75,),
        "violation": 0.5,
        "step": 4,
        "reason": "why",
    }


def test_every_objective_has_its_value() -> None:
    (found, _) = priors(work("success_once", "q_excess:min"), other(a=(GOOD, "completed")))
    assert found["outcome"]["values"] == (0.75, 0.5)
    (found, _) = priors(work("success_once", "unknown"), other(a=(GOOD, "completed")))
    assert found["outcome"]["values"] is None, "a value that is missing is none at all"


def test_what_has_not_ended_or_lies_outside_the_space_is_no_hint() -> None:
    found = priors(
        work(),
        other(
            running=(GOOD, None),
            outside=({**GOOD, LR: 1.0}, "completed"),
            lacking=({LR: 1e-3}, "completed"),
            forged=({**GOOD, LR: "1e-3"}, "completed"),
            no_value=({**GOOD, LOSS: "last_5"}, "completed"),
        ),
    )
    assert found == []


def test_hints_are_written_as_they_are() -> None:
    found = priors(work(), other(a=(GOOD, "completed")))
    assert json.loads(json.dumps(found))[0]["params"] == GOOD
