"""The variants: name -> (Config, make). Adding one means its file, a line here and a script in tune_configs/."""

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field

from offrl_ray.algos import cpql, rlpd
from offrl_ray.types import Algorithm, Spec

Make = Callable[[Any, Spec], Algorithm]

VARIANTS: dict[str, tuple[Any, Make]] = {
    "cpql": (cpql.Config, cpql.make),
    "rlpd": (rlpd.Config, rlpd.make),
}
AlgoConfig = Annotated[cpql.Config | rlpd.Config, Field(discriminator="name")]


def make(cfg: AlgoConfig, spec: Spec) -> Algorithm:
    """The algorithm that a config names."""
    return VARIANTS[cfg.name][1](cfg, spec)
