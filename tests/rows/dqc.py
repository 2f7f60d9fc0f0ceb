import torch

from offrl_ray.types import Spec
from tests.rows.kinds import UNSET, Knob, Part, Row

SPEC = Spec(
    obs_shape={"state": (3,), "goal": (1,)},
    obs_mean={"state": (0.0, 0.0, 0.0), "goal": (0.0,)},
    obs_std={"state": (1.0, 1.0, 1.0), "goal": (1.0,)},
    action_dim=2,
    action_mean=(0.1, -0.2),
    action_std=(0.5, 0.8),
    obs_horizon=2,
    pred_horizon=4,
    act_horizon=3,
    q_horizon=5,
    act_offset=1,
    reward_low=0.0,
    reward_high=1.0,
    reward_ends_episode=True,
)
NO_RESMLP = {"network.width": UNSET, "network.blocks": UNSET}

ROW = Row(
    small={
        "network.width": 16,
        "network.blocks": 1,
        "network.time_dim": 4,
        "critic_hidden": (16, 16),
        "num_flow_steps": 3,
        "num_samples": 4,
        "lr": 1e-3,
        "lr_critic": 1e-3,
        "grad_clip": None,
    },
    knobs={
        "kappa_b": Knob(value=0.6),
        "kappa_d": Knob(value=0.8),
        "backup": Knob(value="expectile"),
        "distill": Knob(value="quantile"),
        "q_agg": Knob(value="min"),
        "num_samples": Knob(value=2),
        "num_flow_steps": Knob(value=2),
        "gamma": Knob(value=0.9),
        "tau": Knob(value=0.5),
        "ema_decay": Knob(value=0.9),
        "reward_scale": Knob(value=0.3),
        "lr": Knob(value=3e-3),
        "lr_critic": Knob(value=3e-3),
        "grad_clip": Knob(value=0.1),
        "network.kind": Knob(value="unet", along={**NO_RESMLP, "network.widths": (16, 16)}),
        "network.width": Knob(value=8),
        "network.blocks": Knob(value=2),
        "network.time_dim": Knob(value=6),
        "network.widths": Knob(value=(16, 32), given={**NO_RESMLP, "network.kind": "unet", "network.widths": (16, 16)}),
        "critic_hidden": Knob(value=(16,)),
        "num_critics": Knob(value=3),
    },
    switches=[{"num_samples": 1}, {"kappa_b": 0.5, "kappa_d": 0.5}],
    parts={
        "td": Part(on={"reward_scale": 1.0}, off={"reward_scale": 0.1}, trains="chunk_critic"),
        "distillation": Part(on={"kappa_d": 0.8}, off={"kappa_d": 0.5}, trains="action_critic"),
        "backup": Part(on={"kappa_b": 0.9}, off={"kappa_b": 0.5}, trains="value"),
    },
    optimisers={name: f"{name}_opt" for name in ("policy", "chunk_critic", "action_critic", "value")},
    averages={
        ("acting", "policy_ema"): ("policy", lambda hp: 1 - hp["ema_decay"]),
        ("acting", "action_critic"): ("action_critic", lambda hp: torch.ones_like(hp["tau"])),
        ("action_critic_target",): ("action_critic", lambda hp: hp["tau"]),
    },
    noisy={},
    normal=frozenset({"x_0", "z"}),
    networks={"resmlp": {}, "unet": {**NO_RESMLP, "network.kind": "unet", "network.widths": (16, 16)}},
    probes={},
    spec=SPEC,
    unchosen={"num_samples": 1},
)
