"""Flow-matching behaviour cloning: CPQL's reference with one loss left."""

from typing import Any

from torch import Tensor

from tests.reference import cpql


def policy_loss(p: cpql.Params, state: Any, batch: Any, noise: dict[str, Tensor], cfg: Any, spec: Any) -> Tensor:
    return cpql.flow_loss(p, batch, noise, cfg)


class Reference(cpql.Reference):
    def losses(self) -> dict[str, Any]:
        return {"policy": policy_loss}
