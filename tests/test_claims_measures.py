"""The measures that claims are made of, by hand."""

import math
from typing import Any

import numpy as np
import pytest

from results_analysis.load import Curves, Evaluation, Seed
from results_analysis.measures import CONFIGURED, measure, up_to_the_stop


def seed(evals: list[float] = [], **metrics: list[float]) -> Seed:  # noqa: B006
    """A report every 100 steps, an evaluation every 100 of one episode each."""
    count = max(map(len, metrics.values()), default=0)
    curves = Curves(100 * np.arange(1, count + 1), {k: np.array(v) for k, v in metrics.items()})
    done = [
        Evaluation(100 * i, {}, {"success_once": np.array([v]), "return": np.array([10 * v])})
        for i, v in enumerate(evals, 1)
    ]
    return Seed(0, curves, done, done[-1] if done else None, None)


BOUNDS: dict[str, list[float]] = {"q_bound_low": [-1.0] * 8, "q_bound_high": [1.0] * 8}
RAMP = [float(i) for i in range(8)]


@pytest.mark.parametrize(
    ("name", "metrics", "value"),
    [
        ("x_late", {"x": RAMP}, 6.5),
        ("x_early", {"x": RAMP}, 0.5),
        ("x_max", {"x": [3.0, 9.0, 1.0]}, 9.0),
        ("x_rise", {"x": RAMP}, 7.0),
        ("x_rise", {"x": [1.0]}, None),
        ("q_rise", {"q_policy_mean": RAMP, **BOUNDS}, 3.5),
        ("q_widths", {"q_policy_mean": RAMP, **BOUNDS}, 3.25),
        ("actor_q_excess", {"actor_q": RAMP, **BOUNDS}, 2.75),
        ("critic_loss_peak", {"critic_loss": [1.0] * 6 + [1000.0, 1.0]}, 3.0),
        ("entropy_gap", {"entropy": RAMP, "target_entropy": [10.0] * 8}, -3.5),
        ("q_rise", {"q_policy_mean": RAMP}, None),
    ],
)
def test_of_train_reports(name: str, metrics: dict[str, list[float]], value: float | None) -> None:
    assert measure(name).of(seed(**metrics)) == (None if value is None else pytest.approx(value))
    assert measure(name).train


@pytest.mark.parametrize(
    ("name", "evals", "value"),
    [
        ("success_once_late", [0, 0, 0, 0, 0, 0, 1, 0], 0.5),
        ("success_once_late", [1, 0], 0.0),
        ("success_once_late", [0.4], 0.4),
        ("return_late", [0, 0, 0, 1], 10.0),
        ("return_lost", [0, 1, 1, 0, 0, 0, 0.2, 0], 9.0),
        ("return_lost", [1], None),
        ("success_once_best_gain", [0, 0, 1, 0.5], 0.5),
    ],
)
def test_of_evaluations(name: str, evals: list[float], value: float | None) -> None:
    assert measure(name).of(seed(evals)) == (None if value is None else pytest.approx(value))
    assert measure(name).of(seed()) is None


def test_a_critic_loss_of_zero_has_no_logarithm() -> None:
    assert math.isnan(measure("critic_loss_peak").of(seed(critic_loss=[0.0])) or 0.0)


def test_effective_weight_of_the_q_term() -> None:
    """0.2 x mean(1, 3) over 2 x mean(4, 6)."""
    of, config = CONFIGURED["effective_q_weight"].of, {"algo": {"alpha": 0.2, "bc_weight": 2.0}}
    norms: dict[str, Any] = {"grad_norm_q_policy": [1.0, 3.0], "grad_norm_flow": [4.0, 6.0]}
    assert of(config, seed(**norms)) == pytest.approx(0.04)
    assert of(config, seed(grad_norm_flow=[1.0])) is None
    assert of({"algo": {"alpha": 0.2, "bc_weight": 0.0}}, seed(**norms)) is None


def test_a_ramp_at_adams_limit_is_1() -> None:
    of = CONFIGURED["temperature_ramp"].of
    limit = [math.exp(1e-3 * 100 * i) for i in range(5)]
    assert of({"algo": {"lr_temperature": 1e-3}}, seed(temperature=limit)) == pytest.approx(1.0)
    assert of({"algo": {"lr_temperature": 2e-3}}, seed(temperature=limit)) == pytest.approx(0.5)
    assert of({"algo": {"lr_temperature": 0}}, seed(temperature=limit)) is None
    assert of({"algo": {}}, seed(loss=limit)) is None


def test_reports_up_to_the_stop() -> None:
    """x breaks at the third report; y was never there at the first one, and does not count."""
    curves = seed(x=[1.0, 2.0, math.inf, 4.0], y=[math.nan, 2.0, 3.0, 4.0]).train
    cut = up_to_the_stop(curves)
    assert cut.steps.tolist() == [100, 200]
    assert cut.metrics["x"].tolist() == [1.0, 2.0]
    whole = up_to_the_stop(seed(x=[1.0, 2.0]).train)
    assert whole.steps.tolist() == [100, 200]
    assert up_to_the_stop(Curves(np.empty(0, int), {})).steps.tolist() == []
