"""What another sweep found, for a search to start from."""

from offrl_ray.sweep.conductor import outcome
from offrl_ray.sweep.plan import Plan
from offrl_ray.sweep.state import Record, State


def priors(plan: Plan, other: State) -> list[Record]:
    """`priors` of a plan's record: for each cell, the ended trials of the other sweep that have values for its space.

    A trial that differs in a grid value of the cell is another cell's. Settings beside the axes are not compared: the
    results need only be a hint. Numbers below 0 keep them apart from the points that this sweep asks.
    """
    found: list[Record] = []
    for cell in plan.cells:
        for t in other.trials.values():
            at = t.point | t.params
            fits = all(at.get(k, v) == v for k, v in cell.axes.items())
            if cell.space and t.ended and fits and all(_takes(d, at.get(k)) for k, d in cell.space.items()):
                params = {k: at[k] for k in cell.space}
                prior = {"cell": cell.index, "number": -1 - len(found), "params": params, "from": t.name}
                found.append({**prior, "outcome": outcome(t, plan.objectives)._asdict()})
    return found


def _takes(domain: object, value: object) -> bool:
    try:
        domain.encode(value)  # type: ignore[attr-defined]
    except ValueError:
        return False
    return True
