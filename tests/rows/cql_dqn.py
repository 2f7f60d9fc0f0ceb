import torch

from offrl_ray.types import Spec
from tests.rows.kinds import Knob, Part, Row

SPEC = Spec(
    obs_shape={"state": (3,), "goal": (1,)},
    obs_mean={"state": (0.0, 0.0, 0.0), "goal": (0.0,)},
    obs_std={"state": (1.0, 1.0, 1.0), "goal": (1.0,)},
    action_dim=1,
    action_mean=(0.0,),
    action_std=(1.0,),
    obs_horizon=1,
    pred_horizon=1,
    act_horizon=1,
    q_horizon=1,
    act_offset=0,
    reward_low=-1.0,
    reward_high=2.0,
    reward_ends_episode=False,
    num_actions=3,
)
PROBE = {"hidden": (32, 32), "cql_alpha": 0.0, "gamma": 0.5, "tau": 0.1, "lr": 1e-2}

ROW = Row(
    small={"hidden": (16, 16), "lr": 1e-3, "tau": 0.1, "grad_clip": None},
    knobs={
        "cql_alpha": Knob(value=0.2),
        "cql_temp": Knob(value=3.0),
        "double_q": Knob(value=False, given={"lr": 0.1}),
        "gamma": Knob(value=0.5),
        "tau": Knob(value=0.5),
        "lr": Knob(value=3e-3),
        "grad_clip": Knob(value=0.1),
        "hidden": Knob(value=(16,)),
    },
    switches=[{"cql_alpha": 0.0}, {"double_q": False}],
    parts={
        "td": Part(on={"gamma": 0.95}, off={"gamma": 0.5}, trains="critic"),
        "push down": Part(on={}, off={}, trains="critic", stopped="push_down"),
        "pull up": Part(on={}, off={}, trains="critic", stopped="pull_up"),
    },
    optimisers={"critic": "critic_opt"},
    averages={
        ("acting", "critic"): ("critic", lambda hp: torch.ones(())),
        ("critic_target",): ("critic", lambda hp: hp["tau"]),
    },
    noisy={},
    normal=frozenset(),
    networks={"mlp": {}},
    probes={"plain": PROBE, "single": {**PROBE, "double_q": False}},
    spec=SPEC,
)
