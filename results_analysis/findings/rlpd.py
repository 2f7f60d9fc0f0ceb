"""Seed document 003: how RLPD's updates work, and what each part of them is for."""

from typing import Any

from offrl_ray.claim import Ask, Check, Claim
from results_analysis.findings.shapes import MATTERS, SUCCESS, asks

SOURCE = "003"
RLPD: dict[str, Any] = {"algo.name": "rlpd"}
BIAS = 0.02  # of a Q, in scaled return
FIXED = {"algo.cta_ratio": "4", "algo.num_critics": "4", "online.demo_ratio": "0.5"}


def ask(**settings: str) -> tuple[Ask, ...]:
    named = {k.replace("__", "."): v for k, v in settings.items()}
    axes = ("algo.cta_ratio", "algo.num_critics", "online.demo_ratio")
    return asks("rlpd", FIXED | named, axes, {"eval.every": "500", "eval.episodes": "50"})


def pair(measure: str, key: str, a: Any, b: Any, direction: Any, least: float, **where: Any) -> Check:
    more = {f"algo.{k}": v for k, v in where.items()}
    return Check(
        kind="pair", measure=measure, direction=direction, least=least, where=RLPD | more, a={key: a}, b={key: b}
    )


CLAIMS = [
    Claim(
        "R1",
        "The minimum over two critics of the ensemble overestimates less than a single one.",
        [pair("q_gap", "algo.num_min", 2, 1, "down", BIAS)],
        SOURCE,
        ["Targets from the ensemble's mean, the third arm one would want, do not exist here."],
        ask=ask(algo__num_min="1,2"),
    ),
    Claim(
        "R2",
        "Q at the start of an episode that succeeds after k steps tends to gamma^k.",
        [
            Check(kind="level", measure="q_gap", direction="same", least=0.05, where=RLPD),
            Check(kind="level", measure=SUCCESS, level=0.5, where=RLPD),
        ],
        SOURCE,
        [
            "Measured on the policy's own evaluation episodes, whose mean discounted return is gamma^k where they "
            "succeed: Q at the start of demonstrations is not recorded.",
            "A Q of 0 agrees with a policy that never succeeds; hence the second check.",
        ],
        ask=ask(),
    ),
    Claim(
        "R3",
        "The actor's entropy bonus and the entropy in the critic's target are different terms: each has an effect.",
        [
            pair("q_policy_mean_late", "algo.backup_entropy", True, False, "differs", BIAS,
                 init_temperature={"above": 1e-4}),
            pair("entropy_late", "algo.init_temperature", {"above": 1e-4}, {"max": 1e-5}, "differs", 1.0,
                 backup_entropy=False),
        ],
        SOURCE,
        ask=ask(
            algo__backup_entropy="false,true", algo__init_temperature="1e-6,0.02", algo__lr_temperature="0"
        ),
    ),
    Claim(
        "R4",
        "Half demonstrations in every batch succeed more often than none and than nothing else.",
        [
            pair(SUCCESS, "online.demo_ratio", 0.5, 0, "up", MATTERS),
            pair(SUCCESS, "online.demo_ratio", 0.5, 1, "up", MATTERS),
        ],
        SOURCE,
        ask=ask(online__demo_ratio="0,0.5,1"),
    ),
    Claim(
        "R5",
        "More than one critic update per step of the actor succeeds more often than one, at equally many actor steps.",
        [pair(SUCCESS, "algo.cta_ratio", {"above": 1}, 1, "up", MATTERS)],
        SOURCE,
        ["Steps of the environment are equal, too; the price is the time of the critic's updates."],
        ask=ask(algo__cta_ratio="1,4"),
    ),
    Claim(
        "R6",
        "Targets over several steps of demonstrations are biased; single steps are the safest.",
        [pair("q_gap", "data.act_horizon", {"above": 1}, 1, "up", BIAS)],
        SOURCE,
        [
            "A target over n steps for a critic of one action does not exist here. This compares chunks with single "
            "steps: where the chunk is the action, the longer target carries no mismatch of policies.",
        ],
        ask=ask(data__act_horizon="1,4", data__pred_horizon="4"),
    ),
]  # fmt: skip
