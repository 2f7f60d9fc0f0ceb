"""The variants: name -> (Config, make). Adding one means its file, a line here and a script in tune_configs/."""

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field

from offrl_ray.algos import awcp, cpql, cql, cql_dqn, dqc, flow_bc, gaussian_bc, rlpd, sac
from offrl_ray.types import Algorithm, Spec

Make = Callable[[Any, Spec], Algorithm]

VARIANTS: dict[str, tuple[Any, Make]] = {
    "cpql": (cpql.Config, cpql.make),
    "awcp": (awcp.Config, awcp.make),
    "dqc": (dqc.Config, dqc.make),
    "sac": (sac.Config, sac.make),
    "cql": (cql.Config, cql.make),
    "cql_dqn": (cql_dqn.Config, cql_dqn.make),
    "rlpd": (rlpd.Config, rlpd.make),
    "flow_bc": (flow_bc.Config, flow_bc.make),
    "gaussian_bc": (gaussian_bc.Config, gaussian_bc.make),
}
AlgoConfig = Annotated[
    cpql.Config
    | awcp.Config
    | dqc.Config
    | sac.Config
    | cql.Config
    | cql_dqn.Config
    | rlpd.Config
    | flow_bc.Config
    | gaussian_bc.Config,
    Field(discriminator="name"),
]


def make(cfg: AlgoConfig, spec: Spec) -> Algorithm:
    """The algorithm that a config names."""
    return VARIANTS[cfg.name][1](cfg, spec)
