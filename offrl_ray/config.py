"""One run, described completely: `RunConfig`. The only way in is `resolve({dotted key: value})`."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_type_hints

import torch
from pydantic import Field, TypeAdapter, ValidationError, field_validator, model_validator

from offrl_ray.algos import VARIANTS, AlgoConfig
from offrl_ray.data.dataset import Anchor
from offrl_ray.errors import UsageError, did_you_mean
from offrl_ray.fields import Count, Fraction, Needs, NonNegative, Number, Positive, config, swept_fields

Action = Literal["stop", "note", "off"]
TAGS = {*VARIANTS, "resmlp", "unet", "function-before", "function-after"}


@config
class DataConfig:
    files: tuple[str, ...] = ()
    """ManiSkill trajectory files; only a variant that steps environments itself can do without"""
    weights: tuple[Positive, ...] | None = None
    """share of each file in a batch; by default every step is equally likely"""
    obs_horizon: Count = 2
    """frames of an observation window"""
    act_horizon: Count = 8
    """actions executed before the policy looks again"""
    pred_horizon: Count = 16
    """actions predicted and imitated"""
    q_horizon: Count | None = None
    """actions of the chunk that the critic scores; none is act_horizon, and only dqc takes more"""
    q_chunk_anchor: Anchor = "current"
    """frame at which a chunk starts; oldest reproduces the seed's off-by-one"""


@config
class EnvConfig:
    id: str | None = None
    """environment; by default the one the data comes from"""
    control_mode: str = "pd_ee_delta_pose"
    """controller; the data must have the same"""
    reward_mode: Literal["sparse", "dense", "normalized_dense", "native"] = "sparse"
    """reward; the data must have the same; native is what a gymnasium environment pays"""
    max_steps: Count = 100
    """length of an evaluation episode"""
    sim_backend: Literal["physx_cpu", "physx_cuda", "native"] = "physx_cpu"
    """simulator of the evaluation; native for gymnasium's own environments"""
    num_envs: Count = 1
    """environments stepped together; more than one needs physx_cuda or native"""


@config
class OnlineConfig:
    start_steps: Count = 5000
    """environment steps of uniformly random actions, per seed, before the first update"""
    demo_ratio: Fraction = 0.5
    """share of a batch that comes from the files, if there are any; the rest is the run's own experience"""


@config
class TrainConfig:
    steps: Count = 30_000
    """updates"""
    batch_size: Count = 256
    """chunks per update"""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**64), Number], ...], Field(min_length=1)] = (0, 1, 2)
    """members trained together, one per seed"""
    report_every: Count = 500
    """updates per record of the training metrics"""
    device: str = "cpu"
    """torch device of the training"""
    threads: Count = 1
    """CPU threads of one training process; more than it owns makes everything crawl"""

    @property
    def on_gpu(self) -> bool:
        return torch.device(self.device).type == "cuda"

    @field_validator("device")
    @classmethod
    def _is_device(cls, value: str) -> str:
        try:
            torch.device(value)
        except RuntimeError:
            raise ValueError("must be a torch device such as cpu, cuda or cuda:1") from None
        return value


@config
class EvalConfig:
    every: Count = 2000
    """updates between evaluations, each with a checkpoint; the end is always evaluated"""
    episodes: Count = 20
    """episodes per seed"""
    seed: Annotated[int, Field(ge=0)] = 10_000
    """episode i starts from seed + i, in every evaluation of every point"""


@config
class StopConfig:
    """What ends a seed before its last update, and what is only noted. A value that is not finite always ends it.

    Reports are those of `train.report_every`; widths are those of the provable bounds of Q that the variant logs.
    """

    q_bound: Action = "stop"
    """Q above its provable bound; not judged where a conservative term lifts the data's Q"""
    q_bound_margin: NonNegative = 1.0
    """how far above, in widths of the bounds"""
    q_bound_reports: Count = 3
    """reports in a row"""
    q_growth: Action = "note"
    """Q rises at every report, faster and faster"""
    q_growth_reports: Annotated[int, Field(ge=2, multiple_of=2), Number] = 8
    """reports in a row"""
    q_growth_factor: Positive = 2.0
    """rise over their later half, in units of the rise over their earlier half"""
    q_growth_share: Positive = 0.1
    """least rise over all of them, in widths of the bounds"""
    critic_loss: Action = "stop"
    """the critic's TD loss explodes: it also exceeds the squared width of the bounds"""
    critic_loss_factor: Positive = 100.0
    """how far, in units of its median before"""
    critic_loss_reports: Count = 3
    """reports in a row"""
    q_spread: Action = "note"
    """the critics of the ensemble disagree"""
    q_spread_share: Positive = 0.5
    """their standard deviation, in widths of the bounds"""
    q_spread_reports: Count = 3
    """reports in a row"""
    temperature: Action = "note"
    """the temperature rises as fast as its step size allows: the target entropy is never met"""
    temperature_share: Fraction = 0.9
    """of the fastest rise that Adam allows"""
    temperature_reports: Count = 10
    """reports in a row"""
    lam: Action = "note"
    """the weight of Q in td3bc's loss collapses"""
    lam_low: Positive = 0.02
    """falls below it"""
    weights_flat: Action = "note"
    """advantage weights carry no information"""
    weights_flat_share: Fraction = 0.99
    """effective share of the batch, above which they are as good as equal"""
    weights_flat_reports: Count = 10
    """reports in a row"""
    weights_few: Action = "note"
    """advantage weights rest on a few samples"""
    weights_few_share: Fraction = 0.05
    """effective share of the batch"""
    weights_few_reports: Count = 3
    """reports in a row"""
    entropy: Action = "note"
    """the policy's entropy collapses below its target"""
    entropy_share: NonNegative = 1.0
    """how far below, in units of the target's absolute value"""
    entropy_reports: Count = 3
    """reports in a row"""
    plateau: Action = "note"
    """losses and Q no longer move"""
    plateau_share: Positive = 0.01
    """of their range so far, between the means of two windows"""
    plateau_reports: Count = 10
    """reports in one window"""


@config
class RunConfig:
    algo: AlgoConfig
    data: DataConfig
    env: EnvConfig = Field(default_factory=EnvConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    eval: EvalConfig = Field(default_factory=EvalConfig)
    online: OnlineConfig | None = None
    """how a variant that steps environments gathers data; none for all others"""
    stop: StopConfig = Field(default_factory=StopConfig)

    @model_validator(mode="after")
    def _consistent(self) -> "RunConfig":
        d, needs, rules = self.data, self.algo.needs, []
        offset = 0 if d.q_chunk_anchor == "current" else d.obs_horizon - 1
        if d.pred_horizon < offset + d.act_horizon:
            rules.append(
                f"data.pred_horizon must be >= {offset + d.act_horizon} (act_horizon"
                f"{f' + {offset} frames of the oldest anchor' if offset else ''}), but is {d.pred_horizon}"
            )
        if d.q_horizon is not None and not (d.q_horizon == d.act_horizon or needs.q_horizon):
            rules.append(
                f"data.q_horizon must be data.act_horizon ({d.act_horizon}) for {self.algo.name}, but is {d.q_horizon}"
            )
        if d.q_horizon is not None and d.q_horizon < d.act_horizon:
            rules.append(f"data.q_horizon must be >= data.act_horizon, but got {d.q_horizon} < {d.act_horizon}")
        if needs.discrete and (d.obs_horizon, d.act_horizon, d.pred_horizon) != (1, 1, 1):
            rules.append(
                f"data.obs_horizon, act_horizon and pred_horizon must be 1 for {self.algo.name}, "
                f"but are {d.obs_horizon}, {d.act_horizon}, {d.pred_horizon}"
            )
        if not d.files and not needs.online:
            rules.append(
                f"data.files must name a trajectory file, which is required for {self.algo.name}, "
                f"but got {list(d.files)}; `offrl-ray collect` makes one"
            )
        if not d.files and needs.online and self.env.id is None:
            rules.append("env.id must be given when there are no data.files to tell it, for example env.id=PushCube-v1")
        if (self.online is not None) != needs.online:
            rules.append(f"online settings must be there for {'rlpd alone' if self.online else self.algo.name}")
        if d.weights is not None and len(d.weights) != len(d.files):
            rules.append(f"data.weights must be one per file, but got {len(d.weights)} for {len(d.files)} files")
        if len(set(self.train.seeds)) != len(self.train.seeds):
            rules.append(f"train.seeds must differ, but got {list(self.train.seeds)}")
        if self.env.sim_backend == "physx_cpu" and self.env.num_envs > 1:
            rules.append(f"env.num_envs must be 1 on physx_cpu, but is {self.env.num_envs}; use physx_cuda or lower it")
        modes = (self.env.control_mode, self.env.reward_mode, self.env.sim_backend)
        if "native" in modes and set(modes) != {"native"}:
            rules.append(
                f"env.control_mode, env.reward_mode and env.sim_backend must all be native, for gymnasium's own "
                f"environments, or none of them, but are {', '.join(modes)}"
            )
        if self.online and self.env.num_envs > 1:
            rules.append(f"env.num_envs must be 1 for {self.algo.name}, but is {self.env.num_envs}")
        if self.online and self.env.sim_backend == "physx_cuda":  # made for hundreds at a time
            rules.append(f"env.sim_backend must not be physx_cuda for {self.algo.name}, which steps one; use physx_cpu")
        if self.eval.seed + self.eval.episodes > 2**32:
            rules.append(f"eval.seed + eval.episodes must be <= 2**32, but got {self.eval.seed} + {self.eval.episodes}")
        if rules:
            raise ValueError("\n".join(rules))
        return self


_RUN = TypeAdapter(RunConfig)


def parse(text: str) -> Any:
    """The value of `--set key=value`: JSON, none, a comma-separated list, or the text itself."""
    if text.lower() in ("none", "null"):
        return None
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return [parse(part) for part in text.split(",") if part] if "," in text else text


def parse_assignments(items: list[str], flag: str = "--set") -> tuple[dict[str, Any], list[str]]:
    """['algo.alpha=0.05', ...] -> {key: value}, and a problem for each item without '='; `flag` is where they stood."""
    problems = [
        f"{flag} takes key=value, but got {i!r}, for example {flag} algo.alpha=0.05" for i in items if "=" not in i
    ]
    return {k.strip(): parse(v) for k, v in (i.split("=", 1) for i in items if "=" in i)}, problems


class Setting(NamedTuple):
    key: str  # dotted
    default: Any
    range: str  # what it may be
    meaning: str
    swept: bool  # may differ between the members of a stack


@cache  # every point of a plan asks for its keys
def describe(variant: str) -> tuple[Setting, ...]:
    """Every setting of a run of this variant. Raises UsageError for an unknown variant."""
    if variant not in VARIANTS:
        raise UsageError([f"no variant {variant!r}; {did_you_mean(variant, VARIANTS)}"])
    needs: Needs = VARIANTS[variant][0].needs
    roots = {**get_type_hints(RunConfig), "algo": VARIANTS[variant][0], "online": OnlineConfig}
    if not needs.online:
        del roots["online"]
    found: dict[str, Setting] = {}
    for root, cls in roots.items():
        for s in _settings(cls):
            key = f"{root}.{s.key}"
            same = found.get(key)
            # a field that two kinds of a block have is one setting
            both = same or s
            allowed, meaning = (" | ".join(dict.fromkeys(x)) for x in zip(both[2:4], s[2:4], strict=True))
            found[key] = s._replace(key=key, default=both.default, range=allowed, meaning=meaning)
    defaults = {**needs.defaults, **({} if needs.online else {"data.files": "required"})}
    return tuple(s._replace(default=defaults.get(s.key, s.default)) for s in found.values())


def worded(variant: str, assignments: Mapping[str, Any]) -> dict[str, Any]:
    """Assignments whose `none` is the word again where a setting's values have that word, such as q_norm's."""
    words = {s.key for s in describe(variant) if "none" in s.range.split(" | ")}

    def word(value: Any) -> Any:
        return [word(v) for v in value] if isinstance(value, list) else "none" if value is None else value

    return {k: word(v) if k in words else v for k, v in assignments.items()}


def _settings(cls: Any) -> Iterator[Setting]:
    hints, ranges, swept = get_type_hints(cls), get_type_hints(cls, include_extras=True), swept_fields(cls)
    own = list(cls.__annotations__)
    # before those that it inherits
    for f in sorted(dataclasses.fields(cls), key=lambda f: own.index(f.name) if f.name in own else len(own)):
        info = cls.__pydantic_fields__[f.name]
        blocks = list(_blocks(hints[f.name]))
        for block in blocks:
            yield from (s._replace(key=f"{f.name}.{s.key}") for s in _settings(block))
        if not blocks:
            default = "required" if info.is_required() else info.get_default(call_default_factory=True)
            schema = TypeAdapter(ranges[f.name]).json_schema()
            yield Setting(f.name, default, _range(schema), info.description or "", f.name in swept)


LIMITS = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}


def _range(schema: Mapping[str, Any]) -> str:
    """A JSON schema in words: number > 0 or none."""
    if "anyOf" in schema:
        return " or ".join(_range(s) for s in schema["anyOf"])
    if choices := schema.get("enum", [schema["const"]] if "const" in schema else []):
        return " | ".join(map(str, choices))
    if schema.get("type") == "array":
        return f"list of {_range(schema.get('items', {}))}"
    limits = [f"{sign} {schema[k]:g}" for k, sign in LIMITS.items() if k in schema]
    multiple = [f"a multiple of {schema['multipleOf']}"] if "multipleOf" in schema else []
    return " ".join(["none" if schema["type"] == "null" else schema["type"], ", ".join(limits + multiple)]).strip()


def _blocks(hint: Any) -> Iterator[type]:
    """Config classes in a type, one or a union of them."""
    if dataclasses.is_dataclass(hint):
        yield hint  # type: ignore[misc]
    else:
        for arg in get_args(hint):
            yield from _blocks(arg)


def resolve(flat: Mapping[str, Any]) -> RunConfig:
    """Validated config from flat dotted keys; `algo.name` chooses the variant. Raises UsageError with all problems."""
    variant = flat.get("algo.name")
    if not isinstance(variant, str) or variant not in VARIANTS:
        raise UsageError([f"algo.name must be a variant, but is {variant!r}; {did_you_mean(str(variant), VARIANTS)}"])
    known = {s.key for s in describe(variant)}
    needs: Needs = VARIANTS[variant][0].needs
    problems = [f"{k}: unknown key; {did_you_mean(k, known)}" for k in flat if k not in known]
    tree: dict[str, Any] = {"data": {}, **({"online": {}} if needs.online else {})}
    for key, value in {**needs.defaults, **flat}.items():
        if key in known:
            _put(tree, key.split("."), value)
    found: dict[str, str] = {}
    cfg = _validate(tree, found)
    problems += found.values()
    if problems or cfg is None:
        raise UsageError(problems)
    return cfg


def _validate(tree: dict[str, Any], found: dict[str, str]) -> RunConfig | None:
    """The config, or None and the problems by place.

    Rules between fields are checked only where the fields are right: without the wrong ones it tries again.
    """
    try:
        return _RUN.validate_python(tree)
    except ValidationError as e:
        removed = False
        for error in e.errors():
            path = [p for p in _place(error) if not p.isdigit()]
            for i, line in enumerate(_problem(error).splitlines()):
                if any(line.startswith(f"{known} must") for known in found):
                    continue  # a rule about a field that is already named
                place = ".".join(path) + f"#{i}" * (error["type"] == "value_error")
                if not any(f"{place}.".startswith(f"{known}.") for known in found if "#" not in known):
                    found.setdefault(place, line)
            removed |= _remove(tree, path)
        if removed:
            _validate(tree, found)
        return None


def _remove(tree: dict[str, Any], path: list[str]) -> bool:
    """Take out the wrong field, or for a rule of a whole block all of its fields; False if there was nothing left."""
    for part in path:
        if part in tree and not isinstance(tree[part], dict):
            del tree[part]
            return True
        tree = tree.get(part, tree)
    fields = [k for k in tree if not isinstance(tree[k], dict) and k not in ("name", "files")]
    for k in fields:
        del tree[k]
    return bool(fields)


def _put(tree: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
    tree[path[-1]] = value


def _place(error: Any) -> list[str]:
    """Where an error is, without pydantic's names for the kinds of a block."""
    return [p for p in map(str, error["loc"]) if p not in TAGS]


def _problem(error: Any) -> str:
    where = ".".join(_place(error))
    message = error["msg"].removeprefix("Value error, ")
    value = error["input"]
    shown = f", but got {value!r}" if not isinstance(value, dict) and not dataclasses.is_dataclass(value) else ""
    return f"{where}: {message}{shown}" if where else message


def to_dict(cfg: Any) -> dict[str, Any]:
    """JSON-able nested dict; `from_dict` is its inverse."""
    return _RUN.dump_python(cfg, mode="json")


def from_dict(tree: Mapping[str, Any]) -> RunConfig:
    """Raises UsageError if the tree is not a valid config."""
    try:
        return _RUN.validate_python(tree)
    except ValidationError as e:
        raise UsageError(_problem(d) for d in e.errors()) from None


def canonical(cfg: RunConfig) -> RunConfig:
    """The same run with its inert fields at their defaults, so that equal runs have equal configs."""
    inert = cfg.algo.inert()
    fields = dataclasses.fields(type(cfg.algo))
    algo = {f.name: getattr(cfg.algo, f.name) for f in fields if f.name not in inert}
    q_horizon = None if cfg.data.q_horizon == cfg.data.act_horizon else cfg.data.q_horizon
    data = dataclasses.replace(cfg.data, q_horizon=q_horizon)
    return dataclasses.replace(cfg, algo=type(cfg.algo)(**algo), data=data)


def digest(cfg: RunConfig) -> str:
    """12 hex digits that name the run up to inert fields."""
    text = json.dumps(to_dict(canonical(cfg)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
