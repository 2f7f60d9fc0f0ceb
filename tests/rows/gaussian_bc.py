import torch

from tests.rows.kinds import Knob, Part, Row

NLL = {"loss": "nll"}

ROW = Row(
    small={"hidden": (16, 16), "lr": 1e-3, "grad_clip": None},
    knobs={
        "loss": Knob(value="nll"),
        "lr": Knob(value=3e-3),
        "grad_clip": Knob(value=0.1),
        "hidden": Knob(value=(16,)),
        "layer_norm": Knob(value=False),
        "activation": Knob(value="relu"),
    },
    switches=[NLL],
    parts={"nll": Part(on=NLL, off={"loss": "mse"}, trains="policy")},
    optimisers={"policy": "policy_opt"},
    averages={("acting", "policy"): ("policy", lambda hp: torch.ones(()))},
    noisy={},
    normal=frozenset(),
    networks={"mse": {}, "nll": NLL},
    probes={},
)
