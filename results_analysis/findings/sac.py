"""Seed document 002: offline SAC with four actor losses, and why it fails."""

from typing import Any

from offrl_ray.claim import Ask, Check, Claim, Control
from results_analysis.findings.shapes import MATTERS, OFTEN, SUCCESS

SOURCE = "002"
START = {"algo.init_temperature": 1.0}
ONE = {"algo.init_temperature": "1"}
OFF = 1e-3  # a temperature too low to matter


def mode(name: str, **more: Any) -> dict[str, Any]:
    return {"algo.name": "sac", "algo.actor_loss": name, **START, **{f"algo.{k}": v for k, v in more.items()}}


def level(measure: str, direction: Any, level: float, where: Any, least: float = 0.0) -> Check:
    return Check(kind="level", measure=measure, direction=direction, level=level, least=least, where=where)


def ask(name: str, **more: str) -> tuple[Ask, ...]:
    return (Ask("sac", {"algo.actor_loss": name, **ONE, **{f"algo.{k}": v for k, v in more.items()}}, OFTEN),)


GAUSSIAN = Ask("gaussian_bc", {"algo.loss": "mse"}, OFTEN)
FLOW = Ask("flow_bc", {}, OFTEN)
SAC = Ask("sac", {}, OFTEN)
HELD = Control(
    "td3bc with the temperature held near 0",
    level(SUCCESS, "up", MATTERS, mode("td3bc", lr_temperature=0) | {"algo.init_temperature": {"max": OFF}}),
    "It succeeds: what fails td3bc is the entropy term, which sums over dimensions where its squared error averages.",
    "It fails without the entropy term, too.",
    ask("td3bc", lr_temperature="0", init_temperature="0.0001"),
)
NO_CRITIC = Control(
    "The same network by squared error alone, against td3bc",
    Check(kind="pair", measure=SUCCESS, least=MATTERS, best=True, a={"algo.name": "gaussian_bc", "algo.loss": "mse"},
          b={"algo.name": "sac", "algo.actor_loss": "td3bc"}),
    "Imitation alone succeeds with the network that td3bc fails with: the network is not the cause.",
    "Imitation alone does no better with this network.",
    (GAUSSIAN, SAC),
)  # fmt: skip

CLAIMS = [
    Claim(
        "S1",
        "Offline SAC succeeds hardly ever, whichever of the four actor losses it has.",
        [Check(kind="level", measure=SUCCESS, direction="down", level=MATTERS, each="algo.actor_loss", values=4,
               where={"algo.name": "sac", "algo.lr_temperature": {"above": 0}, **START})],
        SOURCE,
        ["The document's evaluation dropped the first action of every chunk; this one executes all that is predicted."],
        [HELD],
        ask("sac,td3bc,awr,iql"),
    ),
    Claim(
        "S2",
        "With the sac loss, the actor's loss and the policy's entropy fall all the time.",
        [level("actor_loss_rise", "down", 0.0, mode("sac")), level("entropy_rise", "down", -10.0, mode("sac"))],
        SOURCE,
        ["A uniform policy over 56 dimensions has 38.8 nats; the temperature's target is half the dimensions below 0."],
        ask=ask("sac"),
    ),
    Claim(
        "S3",
        "With td3bc, Q of the policy's actions explodes beyond its bounds.",
        [level("actor_q_rise", "up", 0.0, mode("td3bc")), level("actor_q_excess", "up", 1.0, mode("td3bc"))],
        SOURCE,
        ["The document's 100 is the clip of the targets, 1 / (1 - gamma), and no value."],
        [
            Control(
                "Targets that the clip cut",
                level("td_target_clipped_max", "up", 0.0, mode("td3bc")),
                "The clip is where it stops.",
                "No target reached the clip.",
            )
        ],
        ask("td3bc"),
    ),
    Claim(
        "S4",
        "With td3bc's adaptive weight, the weight of Q (actor_lam) falls to about 0.",
        [
            level("actor_lam_rise", "down", -0.1, mode("td3bc", lam_mode="adaptive")),
            level("actor_lam_late", "down", 0.05, mode("td3bc", lam_mode="adaptive")),
        ],
        SOURCE,
        ["Only lam_mode = adaptive can move: the code that the document ran has the constant 1 / (1 + bc_weight)."],
        ask=ask("td3bc", lam_mode="adaptive"),
    ),
    Claim(
        "S5",
        "A Gaussian network cannot fit the demonstrations: its squared error stays high, in td3bc and by itself.",
        [
            level("bc_loss_late", "up", 0.5, mode("td3bc")),
            level("bc_loss_late", "up", 0.5, {"algo.name": "gaussian_bc", "algo.loss": "mse"}),
        ],
        SOURCE,
        [
            "Flow BC's loss below 0.1 is no squared error of actions: a velocity's error has a floor that is not 0. "
            "Comparable are td3bc and gaussian_bc with mse, same network and units; the error of chunks that a flow "
            "samples is not recorded.",
            "Units are standard deviations of the data's actions, not the document's raw ones.",
        ],
        ask=(*ask("td3bc"), GAUSSIAN),
    ),
    Claim(
        "S6",
        "With awr, advantages are about -0.05, weights about 1.5 on average, and the entropy is low from the start.",
        [
            level("awr_advantage_mean_late", "same", -0.05, mode("awr", awr_advantage="ensemble_gap"), 0.05),
            level("awr_weights_mean_late", "same", 1.5, mode("awr", awr_advantage="ensemble_gap"), 0.3),
            level("entropy_early", "down", -30.0, mode("awr", awr_advantage="ensemble_gap")),
        ],
        SOURCE,
        [
            "This advantage is minus the ensemble's spread, never above 0, and says nothing about the data's actions.",
            "Any standardised advantage gives weights of mean e^(1/2) = 1.65 with a spread of 1.3 times that: the "
            "numbers of the claim, true or not, do not make awr imitation of all data alike.",
        ],
        ask=ask("awr", awr_advantage="ensemble_gap"),
    ),
    Claim(
        "S7",
        "With iql, the temperature rises without end and the entropy lies far below its target.",
        [level("temperature_ramp", "up", 0.9, mode("iql")), level("entropy_gap", "down", -10.0, mode("iql"))],
        SOURCE,
        [
            "This is the fastest rise that Adam allows, exp(lr_temperature x steps), for a target that is never met. "
            "The temperature is not in iql's loss, so it harms nothing.",
        ],
        ask=ask("iql"),
    ),
    Claim(
        "S8",
        "With iql, the critics disagree (q_std above 2.5) after 20,000 updates, and single samples carry the batch "
        "(largest weight above 50).",
        [
            level("q_std_late", "up", 2.5, mode("iql") | {"train.steps": {"min": 20_000}}),
            level("iql_weights_max_late", "up", 50.0, mode("iql") | {"train.steps": {"min": 20_000}}),
        ],
        SOURCE,
        ["Weights have mean 1, so none exceeds the batch size: 256 would be all of the batch in one sample."],
        ask=(
            Ask("sac", {"algo.actor_loss": "iql", **ONE, "train.steps": "30000", "train.batch_size": "256"},
                {"eval.every": "5000", "eval.episodes": "50"}),
        ),
    ),
    Claim(
        "S9",
        "Offline SAC fails by its Gaussian network, untunably: it fails even to imitate where a flow succeeds.",
        [Check(kind="pair", measure=SUCCESS, direction="down", least=MATTERS, best=True,
               a={"algo.name": "gaussian_bc"}, b={"algo.name": "flow_bc"})],
        SOURCE,
        controls=[NO_CRITIC, HELD],
        ask=(GAUSSIAN, FLOW),
    ),
    Claim(
        "S10",
        "Flow actors (awcp, dqc) succeed where offline SAC fails.",
        [Check(kind="pair", measure=SUCCESS, least=MATTERS, best=True, a={"algo.name": ["awcp", "dqc"]},
               b={"algo.name": "sac"})],
        SOURCE,
        controls=[
            Control(
                "Against flow imitation without a critic",
                Check(kind="pair", measure=SUCCESS, least=MATTERS, best=True, a={"algo.name": ["awcp", "dqc"]},
                      b={"algo.name": "flow_bc"}),
                "The critic adds to flow imitation.",
                "The critic adds nothing to flow imitation.",
                (FLOW,),
            )
        ],
        ask=(Ask("awcp", {}, OFTEN), SAC),
    ),
]  # fmt: skip
