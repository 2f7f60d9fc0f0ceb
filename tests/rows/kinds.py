"""What the tests must know of a variant: a `Row`, in rows/<variant>.py."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from offrl_ray.types import Hparams, Spec

Flat = Mapping[str, Any]
UNSET = object()
"""A setting that is not given, though `small` gives it."""


@dataclass(frozen=True, kw_only=True)
class Knob:
    """Another value of a setting, settings under which it must matter, and settings that have to change with it."""

    value: Any
    given: Flat = field(default_factory=dict)
    along: Flat = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of the loss: with and without it, the first gradients differ in all of these parameters but `spares`."""

    on: Flat
    off: Flat
    trains: str
    spares: frozenset[str] = frozenset()
    stopped: str = ""
    """the variant's function whose gradient is cut off without it, where no setting does"""


@dataclass(frozen=True, kw_only=True)
class Row:
    small: Flat
    """a network that takes a millisecond, and step sizes at which 20 updates are visible"""
    knobs: Mapping[str, Knob]
    """every setting of the variant"""
    switches: Sequence[Flat]
    """settings that switch something off, and so may make others inert"""
    parts: Mapping[str, Part]
    optimisers: Mapping[str, str]
    """parameters -> their optimiser's state"""
    averages: Mapping[tuple[str, ...], tuple[str, Callable[[Hparams], Tensor]]]
    """path of averaged parameters -> what they follow, and at what rate"""
    noisy: Flat
    """settings under which all kinds of noise are drawn"""
    normal: frozenset[str]
    """noise that is standard normal; all other is uniform in [0, 1)"""
    networks: Mapping[str, Flat]
    probes: Mapping[str, Flat]
    """ways to learn values that must find the closed form"""
    bystanders: frozenset[str] = frozenset()
    """parts of the state that an inert setting may change, because nothing reads them then"""
    spec: Spec | None = None
    """the toy spec, if it must be another one"""
    unchosen: Flat = field(default_factory=dict)
    """settings under which a policy that chooses among its predictions has one"""
