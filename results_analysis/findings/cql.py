"""Seed documents 001 and 004: conservative Q-learning, discrete on CartPole-v1 and continuous on chunks."""

from typing import Any

from offrl_ray.claim import Ask, Check, Claim
from results_analysis.findings.shapes import MATTERS, OFTEN, SUCCESS, with_levels

WEIGHT = "algo.cql_alpha"
DQN: dict[str, Any] = {"algo.name": "cql_dqn"}
CQL: dict[str, Any] = {"algo.name": "cql"}
RETURN = 20.0  # a tenth of the 200 steps that an episode has
BIAS = 0.02  # of a Q, in scaled return


def compared(measure: str, a: Any, b: Any, direction: Any, least: float, where: Any) -> Check:
    return Check(
        kind="pair", measure=measure, direction=direction, least=least, where=where, a={WEIGHT: a}, b={WEIGHT: b}
    )


CLAIMS = [
    Claim(
        "Q1",
        "As cql_alpha goes to 0, Q grows and the return does not.",
        [
            *with_levels("q_widths", WEIGHT, "down", 0.05, DQN),
            compared("return_late", 0, {"min": 0.5}, "down", RETURN, DQN),
        ],
        "001",
        ask=(Ask("cql_dqn", {}),),
    ),
    Claim(
        "Q2",
        "A cql_alpha of about 1 is best on CartPole-v1.",
        [
            compared("return_late", 1, 0, "up", 0.0, DQN),
            compared("return_late", 1, {"min": 2}, "up", 0.0, DQN),
        ],
        "001",
        ["The document reads single noisy curves of five weights."],
        ask=(Ask("cql_dqn", {}),),
    ),
    Claim(
        "Q3",
        "Without conservatism the return rises and then collapses on fixed data, and more data does not cure it.",
        [Check(kind="level", measure="return_lost", level=RETURN, where=DQN | {WEIGHT: 0}, each="data.episodes",
               values=2)],
        "001",
        ["The best of many noisy evaluations lies above their mean even where nothing collapses; means of a quarter of "
         "all evaluations keep that small."],
        ask=(
            Ask("cql_dqn", {WEIGHT: "0"}),
            Ask("cql_dqn", {WEIGHT: "0", "data.files": "cartpole-1000.h5"}),
        ),
        decide="First `offrl-ray collect --env-id CartPole-v1 --episodes 1000 --out cartpole-1000.h5`, then both:",
    ),
    Claim(
        "Q4",
        "The learned Q is a lower bound: at the start of episodes it does not exceed their discounted return.",
        [Check(kind="level", measure="q_gap", direction="down", level=BIAS, where=CQL | {WEIGHT: {"above": 0}},
               each=WEIGHT)],
        "001, 004",
        ["The return is the learned policy's own, from the same starts; the claim is about its value, not the data's."],
        ask=(Ask("cql", {WEIGHT: "1,5"}, OFTEN),),
    ),
    Claim(
        "Q5",
        "CQL succeeds more often than plain SAC on fixed data.",
        [compared(SUCCESS, {"above": 0}, 0, "up", MATTERS, CQL)],
        "001, 004",
        ["At cql_alpha = 0 this is SAC, bit for bit. Nothing in either actor's loss asks for the data's actions."],
        ask=(Ask("cql", {WEIGHT: "0,1,5"}, OFTEN),),
    ),
]  # fmt: skip
