import torch

from tests.rows.kinds import Knob, Part, Row

STILL = {"lr_critic": 1e-30}
"""the critics' gradient is seen in their optimiser, and the policy does not climb a changed critic"""

ROW = Row(
    small={
        "hidden": (16, 16),
        "critic_hidden": (16, 16),
        "num_samples": 2,
        "cql_alpha": 0.5,
        "init_temperature": 0.3,
        "lr_temperature": 1e-3,
        "lr": 1e-3,
        "lr_critic": 1e-3,
    },
    knobs={
        "gamma": Knob(value=0.9),
        "tau": Knob(value=0.5),
        "reward_scale": Knob(value=0.5),
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
        "layer_norm": Knob(value=True),
        "activation": Knob(value="mish"),
        "num_critics": Knob(value=3),
        "num_min": Knob(value=1),
        "cql_alpha": Knob(value=2.0),
        "cql_temp": Knob(value=2.0),
        "num_samples": Knob(value=3),
        "form": Knob(value="plain"),
        "lagrange_gap": Knob(value=1.0),
        "cql_clip_diff_min": Knob(value=6.0),
        "max_target_backup": Knob(value=True),
        "bc_steps": Knob(value=2.0),
    },
    switches=[{"cql_alpha": 0.0}, {"cql_alpha": 0.0, "max_target_backup": True}, {"max_target_backup": True}],
    parts={
        "td": Part(on={**STILL, "reward_scale": 1.0}, off={**STILL, "reward_scale": 0.1}, trains="critic"),
        # a constant on all values cancels in their difference
        "penalty": Part(
            on={**STILL, "cql_alpha": 1.0},
            off={**STILL, "cql_alpha": 0.0},
            trains="critic",
            spares=frozenset({"b_out"}),
        ),
        # the two forms pull the data's action up alike
        "push down": Part(
            on={**STILL, "form": "importance"},
            off={**STILL, "form": "per_source"},
            trains="critic",
            spares=frozenset({"b_out"}),
        ),
        "lagrange": Part(on={**STILL, "lagrange_gap": 1.0}, off={**STILL, "lagrange_gap": 2.0}, trains="alpha_prime"),
        "actor": Part(on={"bc_steps": 0.0}, off={"bc_steps": 1.0}, trains="policy"),
        "temperature": Part(on={"target_entropy": -1.0}, off={"target_entropy": -3.0}, trains="temperature"),
    },
    optimisers={k: f"{k}_opt" for k in ("policy", "critic", "temperature", "alpha_prime")},
    averages={
        ("acting", "policy"): ("policy", lambda hp: torch.ones_like(hp["tau"])),
        ("critic_target",): ("critic", lambda hp: hp["tau"]),
    },
    noisy={},
    normal=frozenset({"eps", "eps_next", "current", "next"}),
    networks={
        "relu": {},
        "mish after LayerNorm": {"layer_norm": True, "activation": "mish"},
        "tanh, per source": {"activation": "tanh", "form": "per_source"},
    },
    probes={
        "without penalty": {
            "critic_hidden": (32, 32),
            "num_samples": 1,
            "cql_alpha": 0.0,
            "gamma": 0.5,
            "tau": 0.1,
            "lr_critic": 1e-2,
        }
    },
)
