from tests.rows.cpql import ROW as CPQL
from tests.rows.kinds import Row

NETWORK = {k for k in CPQL.knobs if k.startswith("network.")}
OWN = NETWORK | {"num_flow_steps", "ema_decay", "lr", "warmup_steps", "grad_clip"}

ROW = Row(
    small={k: v for k, v in CPQL.small.items() if k in OWN},
    knobs={k: knob for k, knob in CPQL.knobs.items() if k in OWN},
    switches=[{}],  # there is nothing to switch off; still no setting may be inert
    parts={},  # one part, which nothing switches off
    optimisers={"policy": "policy_opt"},
    averages={("acting", "policy_ema"): CPQL.averages["acting", "policy_ema"]},
    noisy={},
    normal=CPQL.normal,
    networks=CPQL.networks,
    probes={},
)
