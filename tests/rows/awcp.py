from tests.rows.cpql import ROW as CPQL
from tests.rows.kinds import Knob, Part, Row

OWN_OF_CPQL = {"alpha", "q_grad_mode", "q_grad_steps", "q_norm", "q_norm_eps"}
VELOCITY = {"cons_mode": "velocity"}
SHARED = {k: knob for k, knob in CPQL.knobs.items() if k not in OWN_OF_CPQL}
NOTHING = {"bc_weight": 0.0, "consistency_weight": 0.0}
PROBE = {k: v for k, v in CPQL.probes["plain"].items() if k not in OWN_OF_CPQL}

ROW = Row(
    small={
        **{k: v for k, v in CPQL.small.items() if k not in OWN_OF_CPQL},
        "beta": 2.0,
        "baseline": "value",
    },
    knobs=SHARED
    | {k: Knob(value=SHARED[k].value, given=VELOCITY) for k in SHARED if k.startswith(("cons_t_", "cons_delta_"))}
    | {
        "consistency_weight": Knob(value=0.7),
        "beta": Knob(value=5.0),
        "weight_clip": Knob(value=1.0),
        "baseline": Knob(value="batch_mean"),
        "expectile": Knob(value=0.9),
        "cons_mode": Knob(value="velocity"),
        "cons_step": Knob(value=0.2),
    },
    switches=[
        {"beta": 0.0},
        {"baseline": "batch_mean"},
        {"consistency_weight": 0.0},
        {"bc_weight": 0.0},
        {"cons_mode": "velocity"},
        {"cons_mode": "endpoint"},
    ],
    parts={
        "flow": Part(on={**NOTHING, "bc_weight": 1.0}, off=NOTHING, trains="policy"),
        "consistency": Part(on={**NOTHING, "consistency_weight": 1.0}, off=NOTHING, trains="policy"),
        "consistency, velocity": Part(
            on={**NOTHING, **VELOCITY, "consistency_weight": 1.0}, off={**NOTHING, **VELOCITY}, trains="policy"
        ),
        "weights": Part(on={"beta": 10.0}, off={"beta": 0.0}, trains="policy"),
        "value": Part(on={"expectile": 0.9}, off={"expectile": 0.1}, trains="value"),
        **{k: CPQL.parts[k] for k in ("td", "penalty")},
    },
    optimisers={**CPQL.optimisers, "value": "value_opt"},
    averages=CPQL.averages,
    noisy=CPQL.noisy,
    normal=CPQL.normal,
    networks=CPQL.networks,
    probes={"plain": PROBE},
    bystanders=frozenset({"value", "value_opt"}),
)
