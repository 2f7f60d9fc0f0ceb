"""What to try when a rule fires or a trial fails, setting by setting.

The grounds: overestimation is met by smaller critic steps, LayerNorm (SEEM, Yue et al., NeurIPS 2023; RLPD, Ball et
al., ICML 2023), a critic that cannot leave its bounds, a conservative term (CQL, Kumar et al., NeurIPS 2020) and the
minimum over more critics (SAC-N, An et al., NeurIPS 2021). Adam moves log temperature by its step size at most, so a
steady ramp is the optimiser's limit and its target is never met: hold the temperature instead.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple


class Try(NamedTuple):
    """One change of one setting, for configs that have it and are not there yet."""

    key: str  # dotted
    factor: float | None = None  # on its value, where that is a number above 0
    value: Any = None  # what it becomes, where there is no factor
    when: tuple[str, Any] | None = None  # only where that setting has that value
    to_bound: bool = False  # lowered to the largest absolute value that a true Q can have


class Rule(NamedTuple):
    meaning: str
    metrics: tuple[str, ...]  # those that show it, as far as they are logged
    tries: tuple[Try, ...]


SMALLER_CRITIC_STEPS = Try("algo.lr_critic", 1 / 3)
TIGHTER = (
    SMALLER_CRITIC_STEPS,
    Try("algo.lr", 1 / 3, when=("algo.name", "cql_dqn")),
    Try("algo.q_target_clip", to_bound=True),
    Try("algo.bounded_critic", value=True),
    Try("algo.layer_norm", value=True),
    Try("algo.cql_alpha", 3),
    Try("algo.cql_alpha", value=1.0, when=("algo.cql_alpha", 0)),
    Try("algo.random_action_penalty", value=1.0, when=("algo.random_action_penalty", 0)),
    Try("algo.num_critics", 2),
    Try("algo.alpha", 1 / 3, when=("algo.name", "cpql")),
    Try("algo.q_grad_mode", value="single_step"),
)
Q = ("q_policy_mean", "q_data_mean", "q_mean")
AWR, IQL = ("algo.actor_loss", "awr"), ("algo.actor_loss", "iql")

RULES = {
    "q_bound": Rule("Q is above any value that the rewards allow: overestimation, not learning.", Q, TIGHTER),
    "q_growth": Rule("Q rises faster and faster: it feeds on its own targets.", (*Q, "td_target_mean"), TIGHTER),
    "critic_loss": Rule(
        "The critic's loss explodes: its targets move faster than it can follow.",
        ("td_loss", "critic_loss", "td_target_mean", "grad_norm_critic"),
        (
            SMALLER_CRITIC_STEPS,
            Try("algo.lr", 1 / 3, when=("algo.name", "cql_dqn")),
            Try("algo.tau", 1 / 3),
            Try("algo.grad_clip", value=1.0, when=("algo.grad_clip", None)),
            Try("algo.layer_norm", value=True),
        ),
    ),
    "q_spread": Rule(
        "The critics of the ensemble disagree: the data does not tell them what these actions are worth.",
        ("q_std", "q_data_std", "q_data_mean"),
        (Try("algo.layer_norm", value=True), SMALLER_CRITIC_STEPS, Try("algo.cql_alpha", 3)),
    ),
    "temperature": Rule(
        "The temperature rises as fast as Adam lets it: the target entropy is never met, whatever the run's length. "
        "Hold the temperature, or set algo.target_entropy to one that the policy can have.",
        ("temperature", "entropy", "target_entropy"),
        (Try("algo.lr_temperature", value=0.0), Try("algo.init_temperature", 0.1)),
    ),
    "lam": Rule(
        "The weight of Q in td3bc's loss has collapsed as |Q| grew: what is left imitates the data.",
        ("actor_lam", "q_policy_mean", "bc_loss"),
        (Try("algo.lam_mode", value="const"), Try("algo.reward_scale", 0.1)),
    ),
    "weights_flat": Rule(
        "All advantage weights are as good as equal: the policy imitates the data, whatever the critic says.",
        ("effective_sample_share", "awr_weights_max", "iql_weights_max", "weight_std"),
        (
            Try("algo.beta", 3),
            Try("algo.awr_temperature", 1 / 3, when=AWR),
            Try("algo.iql_temperature", 1 / 3, when=IQL),
        ),
    ),
    "weights_few": Rule(
        "A few samples carry the batch: the policy fits them, noise included.",
        ("effective_sample_share", "awr_weights_max", "iql_weights_max", "weight_std"),
        (
            Try("algo.beta", 1 / 3),
            Try("algo.awr_temperature", 3, when=AWR),
            Try("algo.weight_clip", 0.1, when=AWR),
            Try("algo.iql_temperature", 3, when=IQL),
            Try("algo.iql_clip", 0.5, when=IQL),
        ),
    ),
    "entropy": Rule(
        "The policy's entropy lies far below its target: it has collapsed, and the temperature is too slow to stop it.",
        ("entropy", "target_entropy", "temperature"),
        (Try("algo.lr_temperature", 3), Try("algo.init_temperature", 3), Try("algo.lr", 1 / 3)),
    ),
    "plateau": Rule(
        "Losses and Q no longer move: no error. A shorter run may do, or a larger step size goes further.",
        ("actor_loss", "critic_loss", "q_mean"),
        (Try("train.steps", 0.5), Try("algo.lr", 2)),
    ),
    "non_finite": Rule(
        "A value is NaN or infinite: gradients exploded, or the data holds such values (offrl-ray data check FILE).",
        (*Q, "critic_loss", "actor_loss", "loss"),
        (
            SMALLER_CRITIC_STEPS,
            Try("algo.lr", 1 / 3),
            Try("algo.grad_clip", value=1.0, when=("algo.grad_clip", None)),
            Try("algo.warmup_steps", 3),
            Try("algo.bounded_critic", value=True),
        ),
    ),
}
"""By the name that stands before the colon of a reason; StopConfig says what each leads to."""

FAILURES = {
    "infra": "A process, an actor or a node was lost more often than is tried again: see the machine's log. {retry}",
    "gpu": "A CUDA error came back twice: another GPU may do better. {retry}",
    "oom": (
        "Out of memory twice. Fewer trials at once (resources.cpus_per_trial or gpus_per_trial of the script), or a "
        "smaller train.batch_size or algo.num_critics in a new sweep. {retry}"
    ),
    "hang": (
        "No word within --hang-after seconds, twice: the stacks in trials/TRIAL/hang_N.txt say where. Where it is "
        "only slow, run the script with a larger --hang-after. {retry}"
    ),
    "eval": "The last evaluation was lost three times; the training is whole. The notes say why. {retry}",
    "disk": "The disk is full: free some space, or keep fewer checkpoints (--keep-top, --keep-bytes). {resume}",
    "checkpoint": "Every checkpoint is damaged: see what is left (offrl-ray fsck {folder}), and the disk. {retry}",
    "data": "The data or the settings do not fit: offrl-ray data check FILE names what is wrong. {retry}",
    "code": "An exception, which the reason quotes: it comes back until the code is mended. {retry}",
}
"""By failure class."""


def value_of(config: Mapping[str, Any], key: str) -> tuple[bool, Any]:
    """Whether a config has a dotted key, and its value."""
    found: Any = config
    for part in key.split("."):
        if not isinstance(found, Mapping) or part not in found:
            return False, None
        found = found[part]
    return True, found


def changes(rule: str, config: Mapping[str, Any], bound: float | None) -> Iterator[tuple[str, Any, Any]]:
    """The settings that this config may change against a rule: dotted key, value now, value to try.

    `bound`: the largest absolute value of a true Q, if it is known.
    """
    yield from taken(RULES[rule].tries if rule in RULES else (), config, bound)


def taken(tries: Iterable[Try], config: Mapping[str, Any], bound: float | None) -> Iterator[tuple[str, Any, Any]]:
    """`changes` of these: those that the config has and that change something."""
    for t in tries:
        known, now = value_of(config, t.key)
        if known and (t.when is None or value_of(config, t.when[0]) == (True, t.when[1])):
            new = _changed(t, now, bound)
            if new is not None and new != now:
                yield t.key, now, new


def as_set(value: object) -> str:
    """As --set takes it."""
    return "none" if value is None else json.dumps(value).strip('"')


def _changed(t: Try, now: Any, bound: float | None) -> Any:
    """None where there is nothing to change; a count stays whole."""
    if t.to_bound:
        return float(f"{bound:.3g}") if bound and bound < now else None
    if t.factor is None:
        return t.value
    if isinstance(now, bool) or not isinstance(now, int | float) or now <= 0:
        return None
    return max(1, round(now * t.factor)) if isinstance(now, int) else float(f"{now * t.factor:.2g}")
