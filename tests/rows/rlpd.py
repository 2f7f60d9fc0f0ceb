import torch

from tests.rows.kinds import Knob, Part, Row

PROBE = {
    "cta_ratio": 1,
    "hidden": (32, 32),
    "critic_hidden": (32, 32),
    "num_critics": 2,
    "gamma": 0.5,
    "tau": 0.1,
    "init_temperature": 1e-3,
    "lr_temperature": 0.0,
    "lr": 1e-3,
    "lr_critic": 1e-2,
}

STILL = {"lr_critic": 1e-30}
"""The actor climbs the critic of the same update: what trains the critic must not move it here."""

ROW = Row(
    small={
        "cta_ratio": 1,
        "hidden": (16, 16),
        "critic_hidden": (16, 16),
        "num_critics": 4,
        "lr": 1e-3,
        "lr_critic": 1e-3,
    },
    knobs={
        "gamma": Knob(value=0.9),
        "tau": Knob(value=0.5),
        "reward_scale": Knob(value=2.0),
        "q_target_clip": Knob(value=0.05),
        "backup_entropy": Knob(value=True),
        "init_temperature": Knob(value=0.1),
        "lr_temperature": Knob(value=0.0),
        "target_entropy": Knob(value=-1.0),
        "lr": Knob(value=3e-3),
        "lr_critic": Knob(value=3e-3),
        "grad_clip": Knob(value=0.1),
        "hidden": Knob(value=(16,)),
        "critic_hidden": Knob(value=(16,)),
        "layer_norm": Knob(value=False),
        "activation": Knob(value="mish"),
        "num_critics": Knob(value=5),
        "num_min": Knob(value=1),
        "cta_ratio": Knob(value=2),
    },
    switches=[{"lr_temperature": 0.0}, {"backup_entropy": True}],
    parts={
        "td": Part(on={"reward_scale": 1.0, **STILL}, off={"reward_scale": 0.1, **STILL}, trains="critic"),
        "entropy": Part(
            on={"init_temperature": 1.0},
            off={"init_temperature": 0.1},
            trains="policy",
        ),
        "target": Part(on={"target_entropy": -1.0}, off={"target_entropy": 1.0}, trains="temperature"),
    },
    optimisers={"policy": "policy_opt", "critic": "critic_opt", "temperature": "temperature_opt"},
    averages={
        ("acting", "policy"): ("policy", lambda hp: torch.ones_like(hp["tau"])),
        ("critic_target",): ("critic", lambda hp: hp["tau"]),
    },
    noisy={},
    normal=frozenset({"eps", "eps_next"}),
    networks={"plain": {"layer_norm": False}, "mish": {"activation": "mish"}},
    probes={"rlpd": PROBE},
    bystanders=frozenset({"temperature_opt"}),
)
