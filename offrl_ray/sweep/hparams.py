"""TensorBoard's HParams table of a sweep: its columns, and what each run says when it starts and when it ends.

TensorBoard 2.21 decides the form; tests/test_tensorboard.py shows what its server does:

- It keeps the first configuration and the first values that it reads. So all columns are declared when the plan is
  known, and a run says its values when it starts; without a declaration it knows only what has run so far.
- A column with numbers and text answers a sort with error 500 and a filter with error 400; a run that lacks a value is
  left out of the parallel coordinates and the scatter plots. So a key that is inert in some cells is a column of text,
  "n/a" there, its numbers written such that their order as text is their order.
- To filter a column it offers boxes to tick for fewer than BOXES values and a pattern to match for more, but refuses
  to match numbers (400): so many numbers are declared as an interval.
- Runs of one group share a row: metrics are averaged over them, parameters are those of the first. A group is a trial,
  its runs are the seeds, and so the seed is no column.
- Of several declarations below one folder it takes any, and it joins groups of the same name. So a sweep that confirms
  another, and lies in its folder, has curves and no table; of sweeps side by side, look at one at a time.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo

from offrl_ray.sweep import study
from offrl_ray.sweep.space import Choice, Domain, Int
from offrl_ray.sweep.state import EPISODE, Record

NA = "n/a"
BOXES = 10
DIVERGED = "diverged"
"""Tag of 0 or 1: whether a stop rule ended this seed."""
ALWAYS = ("success_once", "success_at_end", "return", "length")
CRITIC = ("q_gap", "q_excess", "critic_loss")


class Column(NamedTuple):
    """A key of the table. `text`: its values are neither all numbers nor all truth values, or some run lacks it."""

    domain: Domain
    text: bool
    lacking: bool  # some cell of the plan has no such key
    digits: int  # at most, before the decimal point

    def info(self, key: str) -> api_pb2.HParamInfo:
        values = _values(self.domain)
        info = api_pb2.HParamInfo(name=key, differs=len(values) > 1 or self.lacking)
        if self.text:
            info.type = api_pb2.DATA_TYPE_STRING
            info.domain_discrete.extend([*map(self.label, values), *[NA] * self.lacking])
        elif _all_bools(values):
            info.type = api_pb2.DATA_TYPE_BOOL
            info.domain_discrete.extend(values)
        else:
            info.type = api_pb2.DATA_TYPE_FLOAT64
            if isinstance(self.domain, Choice) and len(values) < BOXES:
                info.domain_discrete.extend(values)
            else:
                info.domain_interval.min_value, info.domain_interval.max_value = min(values), max(values)
        return info

    def label(self, value: Any) -> str:
        """Text of a value. Of numbers that are not negative, the order as text is the order."""
        if _is_number(value):
            return " " * (self.digits - _digits(value)) + _positional(value)
        return "none" if value is None else value if isinstance(value, str) else json.dumps(value)


class Table:
    """The table of a plan. `configs`, of points known so far, tell whether there is a critic to show."""

    def __init__(self, plan: Record, configs: Iterable[Mapping[str, Any]]):
        places = [set(c["axes"]) | set(c["space"]) for c in plan.get("cells", ())]
        self._asked = study.domains(plan)
        self._columns = {k: _column(d, any(k not in p for p in places)) for k, d in self._asked.items()}
        self._columns |= _others(plan, self._asked)
        self._time = plan["time"]
        critic = any("gamma" in c["algo"] for c in configs)
        asked = [tag(o["metric"]) for o in plan.get("objectives", ())]
        tags = [*asked, DIVERGED, *map(tag, ALWAYS + CRITIC if critic else ALWAYS)]
        self._tags = list(dict.fromkeys(tags))

    def experiment(self) -> Summary:
        """What is in the table: every parameter with its domain, and the metrics."""
        infos = [c.info(k) for k, c in self._columns.items()]
        metrics = [api_pb2.MetricInfo(name=api_pb2.MetricName(tag=t)) for t in self._tags]
        about = api_pb2.Experiment(hparam_infos=infos, metric_infos=metrics, time_created_secs=self._time)
        return summary(metadata.EXPERIMENT_TAG, experiment=about)

    def start(self, point: Record, time: float) -> Summary:
        """The values of one of a trial's runs. `time` in unix seconds."""
        info = SessionStartInfo(group_name=point["trial"], start_time_secs=time)
        at = {k: v for k, v in _flat(point["config"]).items() if k not in self._asked} | point["point"]
        for key, column in self._columns.items():
            if column.text:
                info.hparams[key].string_value = column.label(at[key]) if key in at else NA
            elif isinstance(at.get(key), bool):
                info.hparams[key].bool_value = at[key]
            elif _is_number(at.get(key)):  # else a point that the search chose makes it inert: no text among numbers
                info.hparams[key].number_value = at[key]
        return summary(metadata.SESSION_START_INFO_TAG, session_start_info=info)


def end(record: Record, seed: int) -> Summary:
    """How a run ended: a failed trial and a diverged seed are failures."""
    bad = record["status"] == "failed" or str(seed) in record["diverged"]
    status = api_pb2.STATUS_FAILURE if bad else api_pb2.STATUS_SUCCESS
    info = SessionEndInfo(status=status, end_time_secs=record["time"])
    return summary(metadata.SESSION_END_INFO_TAG, session_end_info=info)


def tag(metric: str) -> str:
    """Of the series of an objective."""
    return f"eval/{metric}" if metric in EPISODE else f"train/{metric}"


def summary(name: str, **content: Any) -> Summary:
    """What the plugin reads at a tag; `content` is one of the kinds of its data."""
    about = metadata.create_summary_metadata(HParamsPluginData(**content))
    return Summary(value=[Summary.Value(tag=name, metadata=about, tensor=metadata.NULL_TENSOR)])


def _column(domain: Domain, lacking: bool) -> Column:
    values = _values(domain)
    text = lacking or not (all(map(_is_number, values)) or _all_bools(values))
    return Column(domain, text, lacking, max((_digits(v) for v in values if _is_number(v)), default=0))


def _others(plan: Record, asked: Mapping[str, Domain]) -> dict[str, Column]:
    """Settings that differ between the plan's points, or between the cells that it searches, without being asked."""
    points = [_flat(p["config"]) for p in plan["points"]]
    cells = [c.get("base", {}) for c in plan.get("cells", ()) if c["space"]]
    found: dict[str, Column] = {}
    for trees in (points, cells):
        for key in dict.fromkeys(k for t in trees for k in t if k not in asked and k not in found):
            values = list({json.dumps(t[key]): t[key] for t in trees if key in t}.values())
            if len(values) > 1 and key != "train.seeds":
                found[key] = _column(Choice(values), any(key not in t for t in trees))
    return found


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _values(domain: Domain) -> Sequence[Any]:
    """All values, or BOXES from the lowest to the highest: TensorBoard knows no interval for text."""
    if isinstance(domain, Choice):
        return domain.values
    if isinstance(domain, Int) and domain.high - domain.low < BOXES:
        return range(domain.low, domain.high + 1)
    if isinstance(domain, Int):
        return [round(v) for v in np.linspace(domain.low, domain.high, BOXES)]
    return [float(v) for v in (np.geomspace if domain.log else np.linspace)(domain.low, domain.high, BOXES)]


def _all_bools(values: Sequence[Any]) -> bool:
    return all(isinstance(v, bool) for v in values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _digits(value: float) -> int:
    return len(_positional(value).partition(".")[0])


def _positional(value: float) -> str:
    """The shortest decimal that is the same number, without an exponent."""
    return np.format_float_positional(value, trim="-")
