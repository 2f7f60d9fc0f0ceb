from tests.rows.kinds import Flat, Knob, Part, Row

SAC: Flat = {"actor_loss": "sac"}
ADAPTIVE: Flat = {"lam_mode": "adaptive"}
AWR: Flat = {"actor_loss": "awr"}
GAP: Flat = {**AWR, "awr_advantage": "ensemble_gap"}
IQL: Flat = {"actor_loss": "iql"}
MODES: dict[str, Flat] = {
    "sac": SAC,
    "td3bc": {},
    "td3bc, adaptive": ADAPTIVE,
    "awr": AWR,
    "awr, ensemble gap": GAP,
    "iql": IQL,
    "iql, entropy bonus": {**IQL, "entropy_bonus": True},
}
PROBE: Flat = {
    "hidden": (32, 32),
    "critic_hidden": (32, 32),
    "layer_norm": False,
    "activation": "relu",
    "num_critics": 2,
    "gamma": 0.5,
    "tau": 0.1,
    "lr_critic": 1e-2,
    "init_temperature": 0.1,
}

ROW = Row(
    small={
        "hidden": (16, 16),
        "critic_hidden": (16, 16),
        "num_critics": 3,
        "lr": 1e-3,
        "lr_critic": 1e-3,
        "lr_temperature": 1e-3,
        "grad_clip": None,
    },
    knobs={
        "actor_loss": Knob(value="sac"),
        "actor_q_mode": Knob(value="mean"),
        "bc_weight": Knob(value=0.5),
        "lam_mode": Knob(value="adaptive"),
        "q_norm_eps": Knob(value=10.0),
        "awr_temperature": Knob(value=0.3, given=AWR),
        "awr_advantage": Knob(value="ensemble_gap", given=AWR),
        "weight_clip": Knob(value=1.0, given=AWR),
        "expectile": Knob(value=0.9, given=IQL),
        "iql_temperature": Knob(value=0.3, given=IQL),
        "iql_clip": Knob(value=1e-3, given=IQL),
        "entropy_bonus": Knob(value=True, given=IQL),
        "cql_alpha": Knob(value=1.0),
        "gamma": Knob(value=0.9),
        "tau": Knob(value=0.5),
        "reward_scale": Knob(value=0.1),
        "q_target_clip": Knob(value=0.05),
        "backup_entropy": Knob(value=True),
        "init_temperature": Knob(value=0.1),
        "lr_temperature": Knob(value=0.1),
        "target_entropy": Knob(value=5.0),
        "lr": Knob(value=3e-3),
        "lr_critic": Knob(value=3e-3),
        "grad_clip": Knob(value=0.1),
        "hidden": Knob(value=(16,)),
        "critic_hidden": Knob(value=(16,)),
        "layer_norm": Knob(value=False),
        "activation": Knob(value="relu"),
        "num_critics": Knob(value=4),
        "num_min": Knob(value=3),
    },
    switches=[*MODES.values(), {"actor_loss": "td3bc", "bc_weight": 0.0}, {"lr_temperature": 0.0}],
    parts={
        "q": Part(on=SAC, off={**SAC, "actor_q_mode": "mean"}, trains="policy"),
        "entropy": Part(on={**SAC, "init_temperature": 1.0}, off={**SAC, "init_temperature": 0.1}, trains="policy"),
        "bc": Part(on={"bc_weight": 1.0}, off={"bc_weight": 0.0}, trains="policy"),
        "bc, adaptive": Part(on=ADAPTIVE, off={}, trains="policy"),
        "awr": Part(on={**AWR, "weight_clip": 1.0}, off={**AWR, "weight_clip": 100.0}, trains="policy"),
        "iql": Part(on={**IQL, "iql_temperature": 0.1}, off={**IQL, "iql_temperature": 10.0}, trains="policy"),
        "iql, entropy": Part(on={**IQL, "entropy_bonus": True}, off=IQL, trains="policy"),
        "temperature": Part(on={"target_entropy": 0.0}, off={"target_entropy": 5.0}, trains="temperature"),
        # in iql alone neither the policy's step nor the value's sees the new critics
        "td": Part(on={**IQL, "reward_scale": 1.0}, off={**IQL, "reward_scale": 0.1}, trains="critic"),
        # a constant on all values cancels in their difference
        "penalty": Part(on={**IQL, "cql_alpha": 10.0}, off=IQL, trains="critic", spares=frozenset({"b_out"})),
    },
    optimisers={"policy": "policy_opt", "critic": "critic_opt", "temperature": "temperature_opt"},
    averages={
        ("acting", "policy"): ("policy", lambda hp: hp["tau"] ** 0),
        ("critic_target",): ("critic", lambda hp: hp["tau"]),
    },
    noisy={},
    normal=frozenset({"eps", "eps_next", "eps_penalty"}),
    networks=MODES | {"relu, no norm": {"layer_norm": False, "activation": "relu"}},
    probes={"sac": {**PROBE, **SAC}, "iql": {**PROBE, **IQL, "expectile": 0.5}},
    bystanders=frozenset({"temperature", "temperature_opt"}),
)
