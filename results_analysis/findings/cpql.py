"""Seed document 000: CPQL's Q term, alpha x q_grad_mode on LiftPegUpright-v1."""

from typing import Any

from offrl_ray.claim import Ask, Check, Claim, Control
from results_analysis.findings.shapes import MATTERS, SUCCESS, asks, with_levels

SOURCE = "000"
ALPHA, MODE = "algo.alpha", "algo.q_grad_mode"
CHAIN = ("single_step", "last_5", "whole_grad")
CPQL = {"algo.name": "cpql"}
ANY_CRITIC: dict[str, Any] = CPQL | {ALPHA: {"above": 0}}
PLAIN: dict[str, Any] = ANY_CRITIC | {"algo.q_norm": "none", "algo.bounded_critic": False}
WIDTH = 0.1  # of the bounds of Q
FACTOR_2 = 0.3  # decades


def ask(**settings: str) -> tuple[Ask, ...]:
    """The script's grid with these settings; __ is a dot, and what has none is the variant's own."""
    named = {k.replace("__", ".") if "__" in k else f"algo.{k}": v for k, v in settings.items()}
    return asks("cpql", {ALPHA: "0,0.01,0.05,0.2"} | named, axes=(ALPHA, MODE))


def matched(measure: str, direction: Any, least: float) -> Control:
    check = Check(
        kind="matched", measure=measure, direction=direction, least=least, over=MODE, order=CHAIN, where=PLAIN
    )
    return Control(
        "Chain length at equal effective weight of the Q term",
        check,
        "The chain's length acts by itself.",
        "The effect vanishes: the chain's length acts through the weight of the Q term alone.",
        ask(alpha="0.01,0.05,0.2,0.8"),
    )


WITHOUT_Q = Control(
    "Against the arm without a Q term, alpha = 0",
    Check(kind="pair", measure=SUCCESS, direction="down", least=MATTERS, where=CPQL, a={ALPHA: {"above": 0}},
          b={ALPHA: 0}),
    "The Q term costs success against imitation alone.",
    "The Q term costs nothing against imitation alone.",
    ask(),
)  # fmt: skip
BOUNDED = Control(
    "With a critic that cannot overestimate",
    Check(kind="ends", measure=SUCCESS, direction="down", least=MATTERS, over=ALPHA,
          where=ANY_CRITIC | {"algo.bounded_critic": True}),
    "Success falls with alpha there, too: the cause is drift off the data, not overestimation.",
    "Success does not fall with alpha there: overestimation may be the cause.",
    ask(bounded_critic="true"),
)  # fmt: skip
ANCHOR = Control(
    "Chunks that start at the current frame, against the document's oldest",
    Check(kind="pair", measure=SUCCESS, direction="differs", least=MATTERS, where=CPQL,
          a={"data.q_chunk_anchor": "current"}, b={"data.q_chunk_anchor": "oldest"}),
    "The document's off-by-one changes success by itself.",
    "The document's off-by-one does not matter here.",
    ask(data__q_chunk_anchor="current,oldest", data__pred_horizon="16"),
)  # fmt: skip


def pair(measure: str, key: str, a: Any, b: Any, direction: Any, least: float, where: Any = PLAIN) -> Check:
    return Check(kind="pair", measure=measure, direction=direction, least=least, where=where, a={key: a}, b={key: b})


CLAIMS = [
    Claim(
        "C1",
        "Q of the policy's actions rises during training, further than any true Q can.",
        [Check(kind="level", measure="q_rise", level=1.0, where=PLAIN)],
        SOURCE,
        ["A Q that rises from its first guess to a true value is learning; only what exceeds its bounds counts."],
        ask=ask(),
    ),
    Claim(
        "C2",
        "Q of the policy's actions rises with alpha.",
        with_levels("q_widths", ALPHA, "up", WIDTH, PLAIN),
        SOURCE,
        ask=ask(),
    ),
    Claim(
        "C3",
        "Q of the policy's actions rises with the length of the gradient chain.",
        with_levels("q_widths", MODE, "up", WIDTH, PLAIN, CHAIN),
        SOURCE,
        controls=[matched("q_widths", "up", WIDTH)],
        ask=ask(),
    ),
    Claim(
        "C4",
        "The critic's loss becomes unstable with alpha and with the length of the chain.",
        [
            *with_levels("critic_loss_peak", ALPHA, "up", FACTOR_2, PLAIN),
            *with_levels("critic_loss_peak", MODE, "up", FACTOR_2, PLAIN, CHAIN),
        ],
        SOURCE,
        controls=[matched("critic_loss_peak", "up", FACTOR_2)],
        ask=ask(),
    ),
    Claim(
        "C5",
        "The policy's loss becomes more negative with alpha and with the length of the chain.",
        [
            *with_levels("policy_loss_late", ALPHA, "down", 0.0, PLAIN),
            *with_levels("policy_loss_late", MODE, "down", 0.0, PLAIN, CHAIN),
        ],
        SOURCE,
        ["The loss has - alpha Q in it: that it falls with alpha says nothing about what is learned."],
        ask=ask(),
    ),
    Claim(
        "C6",
        "Success falls with alpha and with the length of the chain: the smallest alpha in a single step is best.",
        [
            *with_levels(SUCCESS, ALPHA, "down", MATTERS, PLAIN),
            *with_levels(SUCCESS, MODE, "down", MATTERS, PLAIN, CHAIN),
        ],
        SOURCE,
        controls=[matched(SUCCESS, "down", MATTERS), WITHOUT_Q, BOUNDED, ANCHOR],
        ask=ask(),
    ),
    Claim(
        "C7",
        "Normalising the Q term (coin flip) raises success and lowers Q.",
        [
            pair(SUCCESS, "algo.q_norm", "coinflip", "none", "up", MATTERS, ANY_CRITIC),
            pair("q_widths", "algo.q_norm", "coinflip", "none", "down", WIDTH, ANY_CRITIC),
        ],
        SOURCE,
        ["The same alpha weighs differently with and without the normaliser, 1 / mean |Q|."],
        [
            Control(
                "Normaliser at equal effective weight of the Q term",
                Check(
                    kind="matched",
                    measure=SUCCESS,
                    least=MATTERS,
                    over="algo.q_norm",
                    order=("none", "coinflip"),
                    where=ANY_CRITIC,
                ),
                "Normalising helps by itself.",
                "The effect vanishes: the normaliser acts through the weight of the Q term alone.",
                ask(alpha="0.001,0.01,0.1,1") + ask(q_norm="coinflip", alpha="0.001,0.01,0.1,1"),
            )
        ],
        ask() + ask(q_norm="coinflip"),
    ),
    Claim(
        "C8",
        "A heavier imitation term (bc_weight 2 for 1) and a lighter Q term (alpha 0.001 for 0.01) raise success.",
        [
            pair(SUCCESS, "algo.bc_weight", 2, 1, "up", MATTERS),
            pair(SUCCESS, ALPHA, 0.001, 0.01, "up", MATTERS),
        ],
        SOURCE,
        ["The author's own later sweep, one seed, points the other way for bc_weight."],
        ask=ask(bc_weight="1,2", alpha="0.001,0.01"),
    ),
    Claim(
        "C9",
        "Pushing Q of random actions below Q of the data's raises success and lowers Q.",
        [
            pair(SUCCESS, "algo.random_action_penalty", {"above": 0}, 0, "up", MATTERS),
            pair("q_widths", "algo.random_action_penalty", {"above": 0}, 0, "down", WIDTH),
        ],
        SOURCE,
        ask=ask(random_action_penalty="0,1"),
    ),
    Claim(
        "C10",
        "Clipping gradients at norm 1 raises success.",
        [pair(SUCCESS, "algo.grad_clip", 1, None, "up", MATTERS)],
        SOURCE,
        ["The clip was on in the document's own runs, so the document compares it with nothing."],
        [
            Control(
                "Norms that the clip would cut, where it is off",
                Check(kind="level", measure="grad_norm_policy_max", level=1.0, where=PLAIN | {"algo.grad_clip": None}),
                "The clip would cut some.",
                "The clip would cut none: it does nothing.",
                ask(grad_clip="none"),
            )
        ],
        ask(grad_clip="1,none"),
    ),
    Claim(
        "C11",
        "Clamping Q's targets at +-100 raises success.",
        [
            Check(kind="level", measure="td_target_clipped_max", where=PLAIN | {"algo.q_target_clip": 100}),
            pair(SUCCESS, "algo.q_target_clip", 100, {"above": 1e6}, "up", MATTERS),
        ],
        SOURCE,
        ["A clamp that no target ever reaches does nothing: the first check refutes the claim then."],
        ask=ask(q_target_clip="100,1e9"),
    ),
    Claim(
        "C12",
        "alpha = 0.01 is almost imitation alone, and a stronger Q term is harmful.",
        [
            pair(SUCCESS, ALPHA, 0.01, 0, "same", 2 * MATTERS, CPQL),
            pair(SUCCESS, ALPHA, {"min": 0.05}, 0, "down", MATTERS, CPQL),
        ],
        SOURCE,
        ["The document has no arm at alpha = 0."],
        ask=ask(),
    ),
]
