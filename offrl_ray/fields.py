"""Typed, frozen, range-checked configuration blocks.

A field marked `Swept` becomes a 0-d tensor in `Hparams`: members of one stack may differ in it and nothing is rebuilt.
All other fields are structure, and equal within a stack.
"""

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple, TypeVar, dataclass_transform, get_args, get_type_hints

import torch
from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from offrl_ray.types import Hparams

T = TypeVar("T")


class _SweptMark:
    pass


_MARK = _SweptMark()
Swept = Annotated[T, _MARK]


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


Number = BeforeValidator(_no_bool)
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), Number]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False), Number]
Fraction = Annotated[float, Field(ge=0, le=1), Number]
Discount = Annotated[float, Field(gt=0, lt=1), Number]
Count = Annotated[int, Field(ge=1), Number]


class Needs(NamedTuple):
    """What a variant asks of the run around it; stands in its Config as `needs: ClassVar[Needs]`."""

    rewards: bool = True
    discrete: bool = False  # actions are indices, one at a time
    online: bool = False  # steps environments while it trains; then files are optional
    q_horizon: bool = False  # its critic may score longer chunks than are executed
    defaults: Mapping[str, Any] = MappingProxyType({})  # settings outside `algo` whose default is another one here


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(Field,))
def config(cls: type[T]) -> type[T]:
    """A frozen, keyword-only dataclass that validates on every construction and knows its keys."""
    strict = ConfigDict(extra="forbid", validate_default=True, use_attribute_docstrings=True)
    built: Any = dataclass(frozen=True, kw_only=True, config=strict)(cls)
    fields = built.__pydantic_fields__
    for base in cls.__mro__[1:]:  # pydantic forgets the docstrings of inherited fields
        for name, info in getattr(base, "__pydantic_fields__", {}).items():
            fields[name].description = fields[name].description or info.description
    return built


def swept_fields(cls: type) -> tuple[str, ...]:
    """Names of the fields that may differ within a stack, in the order of declaration."""
    hints = get_type_hints(cls, include_extras=True)
    return tuple(f.name for f in dataclasses.fields(cls) if _MARK in get_args(hints[f.name]))


def hparams(cfg: Any, device: str | torch.device = "cpu") -> Hparams:
    """The `Swept` fields of a config as 0-d float tensors; None (switched off) becomes infinity."""
    values = {name: getattr(cfg, name) for name in swept_fields(type(cfg))}
    return {k: torch.tensor(math.inf if v is None else float(v), device=device) for k, v in values.items()}
