"""One run of one point: train, checkpoint, evaluate, and say what happened. Knows nothing of Ray."""

import dataclasses
import math
import resource
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import filelock

from offrl_ray import checkpoint
from offrl_ray.algos import VARIANTS, make
from offrl_ray.algos.functional import select
from offrl_ray.config import RunConfig, to_dict
from offrl_ray.data import hdf5
from offrl_ray.data.dataset import MIN_STD, Arrays, Dataset, build
from offrl_ray.errors import CheckpointError, UsageError
from offrl_ray.evaluate import EvalRequest, EvalResult, Evaluator, is_finite, open_env
from offrl_ray.fields import Needs
from offrl_ray.online import LocalWalk, Online, Walk, random_frames
from offrl_ray.policy import acting_and_critic
from offrl_ray.sweep.divergence import Report, judge, last_finite
from offrl_ray.train import Progress, Snapshot, start, train
from offrl_ray.types import Source, Spec

Record = dict[str, Any]
KEEP = 2
POLL_SECONDS = 1.0
LOCK_SECONDS = 60


class Update(NamedTuple):
    """What a run tells at each pause; `records` as records.Writer takes them."""

    records: list[Record]
    step: int
    done: bool


class Data(NamedTuple):
    arrays: Arrays
    spec: Spec
    env_id: str
    files: list[Record]  # what is in each file


class Loaded(NamedTuple):
    """The data of several points."""

    data: list[Data]  # each distinct setting once
    of_setting: dict[Any, int]  # (DataConfig, EnvConfig) -> which of `data`

    @property
    def files(self) -> list[Record]:
        return list({f["digest"]: f for d in self.data for f in d.files}.values())


def load_data(cfg: RunConfig) -> Data:
    """Read and check the config's files. Raises UsageError with all problems of all files."""
    if not cfg.data.files:
        spec = online_spec(cfg)
        check_network(cfg, spec)
        return Data({}, spec, cfg.env.id or "", [])
    expect = {"control_mode": cfg.env.control_mode, "reward_mode": cfg.env.reward_mode, "env_id": cfg.env.id}
    files = hdf5.load(list(cfg.data.files), **expect, rewards=cfg.algo.needs.rewards)
    d = cfg.data
    given = online_spec(in_env(cfg, files[0].env_id)) if cfg.online else None
    arrays, spec = build(
        [f.episodes for f in files],
        control_mode=cfg.env.control_mode,
        obs_horizon=d.obs_horizon,
        act_horizon=d.act_horizon,
        pred_horizon=d.pred_horizon,
        q_horizon=d.q_horizon,
        num_actions=files[0].num_actions,
        anchor=d.q_chunk_anchor,
        weights=d.weights,
        spec=given,
    )
    check_network(cfg, spec)
    return Data(arrays, spec, files[0].env_id, [f.summary() for f in files])


def online_spec(cfg: RunConfig) -> Spec:
    """The spec of a run that steps environments. Raises UsageError if its environment cannot be built here.

    Observations are standardised by what uniformly random actions meet, since the files, if there are any, hold a small
    part of what the run will see; actions are not standardised. The same with files and without.
    """
    d = cfg.data
    with closing(open_env(cfg.env)) as env:
        seen = random_frames(env)
        dim = env.action_dim
        return Spec(
            obs_shape={k: tuple(v.shape[1:]) for k, v in seen.items()},
            obs_mean={k: tuple(v.mean(0).tolist()) for k, v in seen.items()},
            obs_std={k: tuple(v.std(0).clamp_min(MIN_STD).tolist()) for k, v in seen.items()},
            action_dim=dim,
            action_mean=(0.0,) * dim,
            action_std=(1.0,) * dim,
            obs_horizon=d.obs_horizon,
            pred_horizon=d.pred_horizon,
            act_horizon=d.act_horizon,
            q_horizon=d.q_horizon or d.act_horizon,
            act_offset=0,
            reward_low=0.0,
            reward_high=1.0,
            reward_ends_episode=cfg.env.reward_mode == "sparse",
            num_actions=env.num_actions,
        )


def data_problems(flat: Mapping[str, Any]) -> list[str]:
    """What is wrong with the files of settings that are no valid config, as far as they can be understood."""
    known = VARIANTS.get(str(flat.get("algo.name")))
    needs: Needs = known[0].needs if known else Needs()
    flat = {**needs.defaults, **flat}
    expect = {k: flat[f"env.{k}"] for k in ("control_mode", "reward_mode") if isinstance(flat.get(f"env.{k}"), str)}
    files = [f for f in flat["data.files"] if isinstance(f, str)]
    return [p for f in files for p in hdf5.inspect(f, **expect, rewards=needs.rewards).problems]


def check_network(cfg: RunConfig, spec: Spec) -> None:
    """Raises UsageError if the variant or its networks do not fit the data."""
    if cfg.algo.needs.discrete != bool(spec.num_actions):
        kinds = ("discrete", "continuous") if cfg.algo.needs.discrete else ("continuous", "discrete")
        raise UsageError(
            [f"{cfg.algo.name} needs {kinds[0]} actions, but the data's are {kinds[1]}; choose another variant or file"]
        )
    make(cfg.algo, spec)


def in_env(cfg: RunConfig, env_id: str) -> RunConfig:
    """The config with its environment named, which is the data's unless it already names one."""
    return dataclasses.replace(cfg, env=dataclasses.replace(cfg.env, id=cfg.env.id or env_id))


def run(
    cfg: RunConfig,
    dataset: Dataset,
    folder: Path,
    evaluator: Evaluator,
    trial: str,
    evaluated: frozenset[int] = frozenset(),
    reported: Mapping[int, int] = MappingProxyType({}),
    open_walk: Callable[[], Walk] | None = None,
) -> Generator[Update]:
    """Train to the end and evaluate, from the newest good checkpoint in `folder` if there is one.

    Every evaluation has its checkpoint, which is kept until the evaluation is reported; `evaluated` are the steps that
    already are, `reported` each seed's newest step whose training metrics are: what the checkpoint knows beyond it is
    told again. Pauses after every report, and while it waits for the last evaluations; closed at a pause it saves
    itself, and nothing is done twice. A run that steps environments gets each member's from `open_walk`; by default
    they are in this process.

    Raises CheckpointError if every checkpoint is damaged, DiskFull, and TimeoutError if another process has the folder.
    """
    here = _Run(cfg, dataset, folder, evaluator, trial, evaluated, reported)
    if cfg.online is None:
        return here.updates(dataset)
    open_walk = open_walk or (lambda: LocalWalk(lambda: open_env(cfg.env)))
    return here.online([open_walk() for _ in cfg.train.seeds])


class _Run:
    def __init__(
        self,
        cfg: RunConfig,
        dataset: Dataset,
        folder: Path,
        evaluator: Evaluator,
        trial: str,
        evaluated: frozenset[int],
        reported: Mapping[int, int],
    ):
        self.cfg, self.dataset, self.folder, self.evaluator, self.trial = cfg, dataset, folder, evaluator, trial
        self.alg = make(cfg.algo, dataset.spec)
        self.evaluated, self.reported = set(evaluated), reported
        self.saved = 0  # step of the newest checkpoint
        self.diverged: dict[int, tuple[int, str]] = {}  # seed -> step, reason
        self.history: dict[int, list[Report]] = {seed: [] for seed in cfg.train.seeds}
        self.cost = {"train_seconds": 0.0, "eval_seconds": 0.0, "final_eval_seconds": 0.0, "wait_seconds": 0.0}
        self.began = time.perf_counter()

    def online(self, walks: Sequence[Walk]) -> Generator[Update]:
        try:
            yield from self.updates(Online(self.cfg, self.alg, self.dataset, walks))
        finally:
            for walk in walks:
                walk.close()

    def updates(self, source: Source) -> Generator[Update]:
        with _only_run(self.folder):
            snapshot, records = self._resume()
            try:
                yield Update(records, snapshot.step, False)
                records = []
                for progress in () if self._lost else train(self.cfg, self.alg, source, snapshot):
                    records = self._train_records(progress)
                    snapshot = progress.snapshot
                    if snapshot.step % self.cfg.eval.every == 0 or snapshot.step == self.cfg.train.steps:
                        self._checkpoint(snapshot)
                    records += self._eval_records(self.evaluator.poll(0))
                    if self._lost:
                        break
                    yield Update(records, snapshot.step, False)
                    records = []
                while self.evaluator.pending:
                    began = time.perf_counter()
                    records += self._eval_records(self.evaluator.poll(POLL_SECONDS))
                    self.cost["wait_seconds"] += time.perf_counter() - began
                    yield Update(records, snapshot.step, False)
                    records = []
            except (GeneratorExit, KeyboardInterrupt, SystemExit):
                if snapshot.step > self.saved:
                    self._save(snapshot)
                raise
            yield Update([*records, self._end(snapshot.step)], snapshot.step, True)

    @property
    def _lost(self) -> bool:
        return len(self.diverged) == len(self.cfg.train.seeds)

    def _resume(self) -> tuple[Snapshot, list[Record]]:
        checkpoint.clean(self.folder)
        found, problems = checkpoint.newest(self.folder)
        if found and found.cfg != self.cfg:
            raise UsageError([f"{self.folder} holds checkpoints of another config; choose another folder"])
        snapshot = found.snapshot if found else start(self.cfg, self.alg)
        records: list[Record] = [{"kind": "start", "trial": self.trial, "step": snapshot.step}]
        if found:
            self.saved, self.cost["train_seconds"] = snapshot.step, found.seconds
            records += self._recall(found.history)
        for step in checkpoint.steps(self.folder):
            if step in self.evaluated or (step % self.cfg.eval.every and step != self.cfg.train.steps):
                continue
            try:
                saved = (
                    found if found and step == self.saved else checkpoint.load(checkpoint.path_of(self.folder, step))
                )
            except CheckpointError as e:
                problems += e.problems
                checkpoint.set_aside(self.folder, step)
                continue
            self._submit(saved.snapshot, saved.digest)
        return snapshot, records + [{"kind": "note", "trial": self.trial, "text": p} for p in problems]

    def _recall(self, history: dict[int, list[Any]]) -> list[Record]:
        """Judge as before the stop, and tell what nobody may have heard."""
        reports = sorted(
            ((step, seed, metrics) for seed, found in history.items() for step, metrics in found), key=lambda r: r[:2]
        )
        told = [(step, seed, self._report(step, seed, metrics)) for step, seed, metrics in reports]
        return [r for step, seed, records in told if step > self.reported.get(seed, -1) for r in records]

    def _save(self, snapshot: Snapshot) -> str:
        history = {seed: [[r.step, dict(r.metrics)] for r in reports] for seed, reports in self.history.items()}
        seconds = self.cost["train_seconds"]
        digest = checkpoint.save(self.folder, snapshot, self.cfg, self.dataset.spec, seconds, history)
        self.saved = snapshot.step
        return digest

    def _checkpoint(self, snapshot: Snapshot) -> None:
        """Save, evaluate, and drop older checkpoints whose evaluation a previous pause has reported."""
        digest = self._save(snapshot)
        for step in checkpoint.steps(self.folder)[:-KEEP]:
            if step in self.evaluated or step % self.cfg.eval.every:
                checkpoint.remove(self.folder, step)
        self._submit(snapshot, digest)

    def _submit(self, snapshot: Snapshot, digest: str) -> None:
        members = {
            seed: acting_and_critic(snapshot.state, i)
            for i, seed in enumerate(self.cfg.train.seeds)
            if seed not in self.diverged or self.diverged[seed][0] > snapshot.step
        }
        if members:
            self.evaluator.submit(EvalRequest(snapshot.step, digest, self.cfg, self.dataset.spec, members))

    def _train_records(self, progress: Progress) -> list[Record]:
        self.cost["train_seconds"] += progress.seconds
        step, state = progress.snapshot.step, progress.snapshot.state
        records: list[Record] = []
        for i, seed in enumerate(self.cfg.train.seeds):
            metrics = {name: float(values[i]) for name, values in progress.metrics.items()}
            metrics["finite_weights"] = 1.0 if is_finite(select(state, i)) else math.nan
            records += self._report(step, seed, metrics)
        return records

    def _report(self, step: int, seed: int, metrics: dict[str, float]) -> list[Record]:
        """Take a seed's metrics up, and judge it by them; one that has diverged says no more."""
        if seed in self.diverged:
            return []
        self.history[seed].append(Report(step, metrics))
        fields = {"trial": self.trial, "seed": seed, "step": step}
        records: list[Record] = [{"kind": "train", **fields, "metrics": metrics, "seconds": self.cost["train_seconds"]}]
        for found in judge(self.history[seed], self.cfg):
            if found.action == "stop":
                reason = f"{found.rule}: {found.reason}; {last_finite(self.history[seed])}"
                self.diverged[seed] = (step, reason)
                records.append({"kind": "diverged", **fields, "reason": reason})
                break
            text = f"seed {seed} at step {step}: {found.rule}: {found.reason}"
            records.append({"kind": "note", "trial": self.trial, "text": text})
        return records

    def _eval_records(self, results: list[EvalResult]) -> list[Record]:
        records: list[Record] = []
        for r in results:
            if r.error:
                records.append({"kind": "note", "trial": self.trial, "text": f"evaluation at step {r.step}: {r.error}"})
                continue
            self.evaluated.add(r.step)
            self.cost["eval_seconds"] += r.seconds
            if r.step == self.cfg.train.steps:
                self.cost["final_eval_seconds"] = r.seconds
            records += [eval_record(self.cfg, self.trial, seed, r) for seed in r.episodes]
        return records

    def _end(self, step: int) -> Record:
        missing = not self._lost and self.cfg.train.steps not in self.evaluated
        reason = "; ".join(f"seed {seed}: {why}" for seed, (_, why) in self.diverged.items())
        return {
            "kind": "end",
            "trial": self.trial,
            "status": "diverged" if self._lost else "failed" if missing else "completed",
            "failure": "eval" if missing else "",
            "reason": "the final evaluation is missing" if missing else reason,
            "step": step,
            "diverged": {str(seed): why for seed, (_, why) in self.diverged.items()},
            "cost": {**self.cost, "wall_seconds": time.perf_counter() - self.began, **memory()},
        }


@contextmanager
def _only_run(folder: Path) -> Iterator[None]:
    """A process that its driver has lost may live on for seconds: the next attempt waits until it is gone."""
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / ".lock", timeout=LOCK_SECONDS):
        yield


def eval_record(cfg: RunConfig, trial: str, seed: int, result: EvalResult) -> Record:
    """One seed's episodes as a record."""
    e = result.episodes[seed]
    return {
        "kind": "eval",
        "trial": trial,
        "seed": seed,
        "step": result.step,
        "digest": result.digest,
        "members": sorted(result.episodes),
        "episodes": cfg.eval.episodes,
        "env": to_dict(cfg)["env"],
        "episode_seeds": e.seed,
        "success_once": e.success_once,
        "success_at_end": e.success_at_end,
        "return": e.ret,
        "length": e.length,
        "q_start": e.q_start,
        "discounted_return": e.discounted_return,
        "seconds": result.seconds,
    }


def memory() -> dict[str, int]:
    """Peak of this process, what it shares with no other now, and the peak of that; Linux tells the last two."""
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sizes = {
        line.split(":")[0]: 1024 * int(line.split()[1])
        for path in map(Path, ("/proc/self/status", "/proc/self/smaps_rollup"))
        for line in (path.read_text().splitlines() if path.exists() else [])
        if line.endswith(" kB")
    }
    peak = sizes.get("VmHWM", peak)  # the other includes what the process was forked from
    private = sum(size for name, size in sizes.items() if name.startswith("Private_"))
    # libraries and arrays that all trials of a node share are there from the beginning to the end
    shared = sizes.get("Rss", 0) - private
    return {"peak_bytes": peak, "private_bytes": private, "own_peak_bytes": peak - shared}
