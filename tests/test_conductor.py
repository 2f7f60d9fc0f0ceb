"""Trials of which nothing is trained, and a conductor that does not know. Their curves follow from config and seed."""

import hashlib
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from offrl_ray import records, store
from offrl_ray.config import RunConfig
from offrl_ray.errors import DiskFull, UsageError
from offrl_ray.evaluate import Episodes, EvalResult
from offrl_ray.run import eval_record
from offrl_ray.store import place
from offrl_ray.sweep import fsck, requests
from offrl_ray.sweep.conductor import PATIENCE, Conductor, Job
from offrl_ray.sweep.ledger import Ledger
from offrl_ray.sweep.plan import Demos, Keep, Plan, Preset, Resources, Sweep, plan, plan_of, plan_record
from offrl_ray.sweep.prior import priors
from offrl_ray.sweep.reuse import Cached
from offrl_ray.sweep.rungs import RungSpec
from offrl_ray.sweep.space import Choice, Float
from offrl_ray.sweep.spec import Objective, SearchSpec
from offrl_ray.sweep.state import State
from tests.conftest import TINY
from tests.stores import failing

Record = dict[str, Any]
Fate = Callable[[Conductor, Job, int], str | None]
"""The class of failure to which an attempt is lost when it is about to report a step, if any."""

EVERY, REPORT, STEPS, EPISODES = 4, 2, 12, 10
LR, ALPHA, MODE = "algo.lr", "algo.alpha", "algo.q_grad_mode"
RATES = Float(1e-5, 1e-1, log=True)
WILD, LOST = 3e-3, 2e-2
"""From these learning rates on seed 1 diverges, and all seeds."""


def planned(
    axes: dict[str, Any], search: SearchSpec | None = None, rungs: RungSpec | None = None, **settings: Any
) -> Plan:
    settings = {"eval.episodes": EPISODES} | {k.replace("__", "."): v for k, v in settings.items()}
    preset = Preset(about="", overrides={**TINY, **settings}, demos=Demos(env_id="Toy-v1", episodes=1))
    sweep = Sweep(name="toy", question="", variant="cpql", axes=axes, presets={"toy": preset})
    return plan(sweep, "toy", {}, ["a.h5"], search)._replace(rungs=rungs)


def record_of(work: Plan) -> Record:
    sweep = Sweep(name="toy", question="", variant="cpql", axes={}, presets={})
    return plan_record(sweep, "toy", work, [], {}, Resources(), Keep())


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)


def noise(*key: Any) -> float:
    """Uniform in [0, 1), always the same."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:6]) / 2**48


def successes(cfg: RunConfig, seed: int, step: int) -> int:
    """Of EPISODES; best at a learning rate of 1e-3, and rising."""
    good = 1 / (1 + (math.log10(cfg.algo.lr) + 3) ** 2)
    share = good * (0.5 + 0.5 * step / STEPS) * (0.7 + 0.6 * noise(cfg.algo.lr, cfg.algo.alpha, seed))
    return min(EPISODES, int(share * EPISODES))


def lost_at(cfg: RunConfig, seed: int) -> int | None:
    return 6 if cfg.algo.lr >= LOST or (cfg.algo.lr >= WILD and seed == 1) else None


def end_of(cfg: RunConfig) -> int:
    """Where training ends."""
    return 6 if cfg.algo.lr >= LOST else STEPS


Score = Callable[[RunConfig, int, int], int]


class Run:
    """As run.run: reports that grow stale by one before an evaluation is back, and what it tells again."""

    def __init__(self, job: Job, at: int, score: Score = successes):
        self.job, self.cfg, self.at, self.score = job, job.cfg, at, score
        self.seeds = job.cfg.train.seeds

    def reports(self) -> Iterator[tuple[int, list[Record]]]:
        heard = self.job.reported
        told = [r for s in range(REPORT, self.at + 1, REPORT) for r in self.train(s)]
        due = [s for s in range(EVERY, self.at + 1, EVERY) if s not in self.job.evaluated]
        yield (
            self.at,
            [{"kind": "start", "trial": self.job.trial, "step": self.at}]
            + [r for r in told if r["step"] > heard.get(r["seed"], -1)],
        )
        for step in range(self.at + REPORT, end_of(self.cfg) + 1, REPORT):
            yield step, self.train(step) + self.evals(due)
            due = [step] * (step % EVERY == 0)
        yield end_of(self.cfg), [*self.evals(due), self.end()]

    def train(self, step: int) -> list[Record]:
        found = []
        for seed in self.seeds:
            lost = lost_at(self.cfg, seed)
            if lost is None or step <= lost:
                q = math.nan if step == lost else noise(self.cfg.algo.lr, seed, step)
                fields = {"trial": self.job.trial, "seed": seed, "step": step}
                metrics = {"q_mean": q, "q_bound_high": 0.5}
                found.append({"kind": "train", **fields, "metrics": metrics, "seconds": 0.1 * step})
        return found

    def evals(self, due: Sequence[int]) -> list[Record]:
        found = []
        for step in due:
            members = {}
            for seed in self.seeds:
                if (lost_at(self.cfg, seed) or math.inf) > step:
                    k, first = self.score(self.cfg, seed, step), self.cfg.eval.seed
                    hits = [1] * k + [0] * (EPISODES - k)
                    members[seed] = Episodes([first + i for i in range(EPISODES)], hits, hits, hits, [1] * EPISODES)
            result = EvalResult(step, f"digest of {self.job.trial} {step}", members, 0.1, "")
            found += [eval_record(self.cfg, self.job.trial, seed, result) for seed in members]
        return found

    def end(self) -> Record:
        diverged = {str(s): "non_finite" for s in self.seeds if lost_at(self.cfg, s)}
        status = "diverged" if len(diverged) == len(self.seeds) else "completed"
        fields = {"trial": self.job.trial, "status": status, "failure": "", "reason": ""}
        return {"kind": "end", **fields, "step": end_of(self.cfg), "diverged": diverged, "cost": {"train_seconds": 1.0}}


class ByName:
    """Earlier results by the name of the trial that asks for them."""

    def __init__(self, cache: dict[str, Cached], ledger: Ledger):
        self.cache, self.ledger = cache, ledger

    def get(self, config: Record) -> Cached | None:
        (name,) = (t.name for t in self.ledger.state.trials.values() if t.config == config and t.same_as is None)
        return self.cache.get(name)


class World:
    """A driver with one worker. `ahead`: the newest checkpoint is one that no report tells of."""

    def __init__(
        self,
        folder: Path,
        work: Plan,
        fate: Fate = lambda conductor, job, step: None,
        cache: dict[str, Cached] | None = None,
        hints: Sequence[Record] = (),
        score: Score = successes,
    ):
        self.ledger = Ledger(folder)
        self.conductor = Conductor(work, self.ledger, ByName(cache or {}, self.ledger))  # type: ignore[arg-type]
        self.folder, self.fate, self.score, self.jobs = folder, fate, score, list[Job]()
        self.whole = set[int]()  # numbers of records after which a report was recorded as a whole
        new = [] if self.state.plan else [record_of(work) | {"priors": list(hints)}]
        self.conductor.write(*new, {"kind": "session", "host": "here", "pid": 1, "argv": [], "versions": {}})

    @property
    def state(self) -> State:
        return self.ledger.state

    def run(self, ahead: str = "") -> None:
        while (job := self.conductor.next()) is not None:
            self.attempt(job, EVERY * (job.trial == ahead))

    def attempt(self, job: Job, ahead: int = 0, until: int = STEPS) -> None:
        self.jobs.append(job)
        copied = self.state.trials[job.trial].cached  # and no checkpoint with it
        reported = 0 if copied else max(job.reported.values(), default=0)
        at = min(reported + REPORT * bool(ahead), end_of(job.cfg)) // EVERY * EVERY
        for step, batch in Run(job, at, self.score).reports():
            if failure := self.fate(self.conductor, job, step):
                self.conductor.lost(job.trial, failure, f"lost at {step}")
                return
            if step > until:
                return
            if self.conductor.take(job.trial, batch):
                return
            self.whole.add(len(self.ledger.log))

    def close(self) -> State:
        self.ledger.close()
        return self.state

    def log(self, kind: str) -> list[Record]:
        return [r for r in self.ledger.log if r["kind"] == kind]

    def statuses(self) -> dict[str, str]:
        return {t.name: t.status for t in self.state.trials.values()}

    def studies(self) -> list[Any]:
        return [t for s in self.conductor._search.values() for t in s.study.trials]


def finish(folder: Path, work: Plan, **more: Any) -> World:
    world = World(folder, work, **more)
    world.run()
    world.close()
    return world


def violations(folder: Path) -> list[str]:
    return fsck.check(folder).violations


def search(sampler: str, trials: int, *objectives: str, **more: Any) -> SearchSpec:
    return SearchSpec(sampler, trials, 3, tuple(Objective.parse(o) for o in objectives or ("success_once",)), **more)


GRID = planned({ALPHA: [0.01, 0.05], LR: [1e-3, 1e-4, 2e-3, 5e-3, 5e-2]})
CELLS = {ALPHA: [0.01, 0.05], LR: RATES}
TWINS = {MODE: ["single_step", "whole_grad"], ALPHA: Choice([0.0, 0.05, 0.1])}
"""At alpha 0 the mode is inert: the same run in both cells."""


def test_a_grid_runs_in_order_and_ends(tmp_path: Path) -> None:
    world = finish(tmp_path, GRID)
    assert [j.trial for j in world.jobs] == [p.trial for p in GRID.points]
    assert Counter(world.statuses().values()) == {"completed": 8, "diverged": 2}
    assert world.conductor.finished
    assert world.conductor.next() is None
    assert violations(tmp_path) == []


def test_cells_are_asked_in_turn_and_every_point_is_told(tmp_path: Path) -> None:
    world = finish(tmp_path, planned(CELLS, search("tpe", 6)))
    assert [t.cell for t in world.state.trials.values()] == [0, 1] * 6
    assert [t.name[-4:] for t in world.state.trials.values()] == [f"t{i // 2:03d}" for i in range(12)]
    assert {t.state for t in world.studies()} == {TrialState.COMPLETE, TrialState.PRUNED}
    assert [t.values for t in world.studies() if t.state == TrialState.COMPLETE] == [
        [t.value("success_once")]
        for cell in (0, 1)
        for t in world.state.trials.values()
        if t.cell == cell and t.status == "completed"
    ]
    assert violations(tmp_path) == []


def test_a_diverged_point_is_pruned_and_infeasible_and_no_study_sees_a_nan(tmp_path: Path) -> None:
    first = ({LR: 5e-2}, {LR: 5e-3}, {LR: 1e-3})
    world = finish(tmp_path, planned({LR: RATES}, search("tpe", 4, first=first)))
    lost, one_seed, good, _ = world.studies()
    assert list(world.statuses().values())[:3] == ["diverged", "completed", "completed"]
    assert (lost.state, lost.constraints["q_bound"]) == (TrialState.PRUNED, 1.0)
    assert one_seed.state == TrialState.COMPLETE
    assert one_seed.constraints["q_bound"] == 1.0, "one of its seeds has diverged"
    assert good.constraints["q_bound"] <= 0.5
    for t in world.studies():
        assert all(map(math.isfinite, [*(t.values or []), *t.intermediate_values.values(), *t.constraints.values()]))


def test_a_point_that_repeats_another_is_told_its_result_and_not_run(tmp_path: Path) -> None:
    """Each cell has 3 points, of which alpha 0 is one run: five runs, whoever asked it first."""
    world = finish(tmp_path, planned(TWINS, search("random", 10)))
    trials = world.state.trials.values()
    aliases = [t for t in trials if t.same_as]
    assert len(world.jobs) == len({j.trial for j in world.jobs}) == 5
    assert {t.name for t in aliases}.isdisjoint(j.trial for j in world.jobs)
    assert any(t.cell != world.state.trials[t.same_as or ""].cell for t in aliases)
    assert len(world.studies()) == len(trials)
    for t in trials:
        original = world.state.trials[t.same_as or t.name]
        study = world.conductor._search[t.cell].study
        assert study.trials[t.number].values == [original.value("success_once")]
    assert sum(world.state.counts().values()) == 5
    assert violations(tmp_path) == []


def test_a_cell_that_only_repeats_itself_is_left(tmp_path: Path) -> None:
    """Cell 1 has alpha 0 and 0.05 like cell 0, and another mode; the two at alpha 0 are one run."""
    axes: dict[str, Any] = {MODE: ["single_step", "whole_grad"], ALPHA: Choice([0.0, 0.05])}
    world = finish(tmp_path, planned(axes, search("random", 10)))
    assert len(world.jobs) == 3
    numbers = Counter(t.cell for t in world.state.trials.values())
    assert max(numbers.values()) >= PATIENCE
    assert world.conductor.finished
    assert all(t.state == TrialState.COMPLETE for t in world.studies())


@pytest.mark.parametrize(
    ("failure", "attempts"),
    [("infra", 6), ("gpu", 3), ("oom", 2), ("hang", 2), ("code", 1), ("data", 1), ("checkpoint", 1)],
)
def test_a_lost_attempt_is_tried_again_as_often_as_its_class_allows(
    tmp_path: Path, failure: str, attempts: int
) -> None:
    bad = GRID.points[1].trial
    world = finish(tmp_path, GRID, fate=lambda c, job, step: failure if job.trial == bad and step == 6 else None)
    assert [j.attempt for j in world.jobs if j.trial == bad] == list(range(1, attempts + 1))
    trial = world.state.trials[bad]
    assert trial.end
    assert (trial.status, trial.end["failure"], trial.end["reason"]) == ("failed", failure, "lost at 6")
    assert trial.faults == ({failure: attempts - 1} if attempts > 1 else {})
    assert Counter(world.statuses().values())["failed"] == 1
    assert [r["step"] for r in world.log("start") if r["trial"] == bad] == [0] + [4] * (attempts - 1)
    assert violations(tmp_path) == []


def test_classes_are_counted_apart_and_a_lost_trial_goes_on_at_once(tmp_path: Path) -> None:
    left = ["oom", "hang", "gpu", "gpu", "infra"]
    bad = GRID.points[2].trial
    world = finish(tmp_path, GRID, fate=lambda c, job, s: left.pop() if job.trial == bad and s == 6 and left else None)
    assert world.statuses()[bad] == "completed"
    names = [j.trial for j in world.jobs]
    assert names[2:8] == [bad] * 6
    assert violations(tmp_path) == []


def test_a_lost_trial_goes_on_before_anything_new_begins(tmp_path: Path) -> None:
    world = World(tmp_path, GRID)
    jobs = [world.conductor.next() for _ in range(3)]
    assert jobs[0]
    world.conductor.lost(jobs[0].trial, "infra", "its process was ended")
    again = world.conductor.next()
    assert again
    assert (again.trial, again.attempt) == (jobs[0].trial, 2)
    world.close()


def test_attempts_that_die_before_they_start_have_numbers_of_their_own(tmp_path: Path) -> None:
    left = [0, 0, 0]

    def fate(conductor: Conductor, job: Job, step: int) -> str | None:
        return "infra" if step == 0 and left and left.pop() == 0 else None

    world = finish(tmp_path, GRID, fate=fate)
    assert [j.attempt for j in world.jobs[:4]] == [1, 2, 3, 4]
    assert violations(tmp_path) == []


def test_a_full_disk_drains_and_leaves_the_trial_open(tmp_path: Path) -> None:
    bad = GRID.points[1].trial
    world = finish(tmp_path, GRID, fate=lambda c, job, step: "disk" if job.trial == bad and step == 6 else None)
    assert world.conductor.disk_full
    assert world.statuses()[bad] == "queued"
    assert Counter(world.statuses().values()) == {"completed": 1, "queued": 9}
    assert finish(tmp_path, GRID).statuses()[bad] == "completed"
    assert violations(tmp_path) == []


@pytest.mark.parametrize("at", range(2, 30, 3))
def test_a_disk_that_has_no_room_for_the_records_drains_and_loses_nothing(tmp_path: Path, at: int) -> None:
    work = planned(CELLS, search("tpe", 4), RungSpec(4, 2))
    expected = summary(finish(tmp_path / "whole", work).state)
    world, write = World(tmp_path / "cut", work), records.Writer.write_all
    count = iter(range(1000))

    def full(writer: records.Writer, batch: Sequence[Record]) -> list[Record]:
        if next(count) >= at:
            raise DiskFull(28, "full")
        return write(writer, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records.Writer, "write_all", full)
        world.run()
    assert world.conductor.disk_full
    assert world.conductor.finished
    world.close()
    assert summary(finish(tmp_path / "cut", work).state) == expected
    assert violations(tmp_path / "cut") == []


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("at", range(2, 30, 9))
def test_a_store_that_is_lost_drains_and_loses_nothing(
    url: str, when: str, at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it took a record and never said so; and what goes on is another machine."""
    monkeypatch.setattr(store, "PATIENCE_SECONDS", 0.0)
    work = planned(CELLS, search("tpe", 4), RungSpec(4, 2))
    expected = summary(finish(tmp_path / "whole", work).state)
    count = iter(range(1000))

    def away(name: str, path: Any) -> None:
        if name == "pipe_file" and "/records/" in path and next(count) >= at:
            raise ConnectionError("away")

    with failing(**{when: away}):
        world = World(place(url), work)
        world.run()
        assert world.conductor.draining.startswith(f"{url} does not answer")
        assert world.conductor.finished
        world.close()
    shutil.rmtree(store.copies())
    assert summary(finish(place(url), work).state) == expected
    shutil.rmtree(store.copies())
    assert violations(place(url)) == []


def test_three_that_fail_by_themselves_and_none_that_is_well_drain(tmp_path: Path) -> None:
    world = finish(tmp_path, GRID, fate=lambda c, job, step: "code" if step == 2 else None)
    assert len(world.jobs) == 3
    assert world.conductor.draining == "3 trials failed by themselves and none ended well; one of them: lost at 2"
    assert world.conductor.next() is None
    assert Counter(world.statuses().values()) == {"failed": 3, "queued": 7}


def test_no_drain_after_one_has_ended_well_or_if_the_machine_is_to_blame(tmp_path: Path) -> None:
    later = finish(tmp_path / "a", GRID, fate=lambda c, job, step: "code" if job.trial > "01" and step == 2 else None)
    assert Counter(later.statuses().values()) == {"completed": 1, "failed": 9}
    classes = iter(["oom"] * 6 + ["code"])
    machine = finish(tmp_path / "b", GRID, fate=lambda c, job, s: next(classes, None) if s == 2 else None)
    assert Counter(machine.statuses().values()) == {"failed": 4, "completed": 4, "diverged": 2}
    assert not machine.conductor.draining


def test_trials_without_their_last_evaluation_drain_too(tmp_path: Path) -> None:
    world = World(tmp_path, GRID)
    for _ in range(3):
        job = world.conductor.next()
        assert job
        fields = {"trial": job.trial, "step": STEPS, "diverged": {}, "cost": {}}
        end = {"kind": "end", **fields, "status": "failed", "failure": "eval", "reason": "missing"}
        assert world.conductor.take(job.trial, [{"kind": "start", "trial": job.trial, "step": 0}, end])
    assert world.conductor.draining
    world.close()


def test_a_user_stops_a_queued_a_running_and_an_ended_trial(tmp_path: Path) -> None:
    names = [p.trial for p in GRID.points]

    def fate(conductor: Conductor, job: Job, step: int) -> None:
        if job.trial == names[1] and step == 6:
            for other in (names[1], names[4]):
                requests.ask(tmp_path, other)
            requests.obey(tmp_path, conductor)
            assert conductor.state.trials[names[4]].status == "pruned", "at once"
            assert conductor.state.trials[names[1]].status == "running", "at its next report"
            assert list((tmp_path / "requests").iterdir()) == []
            for known, why in ((names[0], "has ended"), ("nobody", "does not exist")):
                with pytest.raises(UsageError, match=why):
                    conductor.stop(known, "me")

    world = finish(tmp_path, GRID, fate=fate)
    assert [t for t, s in world.statuses().items() if s == "pruned"] == [names[1], names[4]]
    trial = world.state.trials[names[1]]
    assert trial.end
    assert (trial.end["reason"], trial.end["step"]) == (requests.USER, 6)
    assert names[4] not in [j.trial for j in world.jobs]
    assert [r["trial"] for r in world.log("stop")] == [names[1], names[4]], "each decision once"
    assert violations(tmp_path) == []


def test_a_stop_that_was_asked_for_survives_the_driver(tmp_path: Path) -> None:
    world = World(tmp_path, GRID)
    job = world.conductor.next()
    assert job
    world.attempt(job, until=4)
    world.conductor.stop(job.trial, requests.USER)
    world.close()
    again = finish(tmp_path, GRID)
    assert again.statuses()[job.trial] == "pruned"
    assert job.trial not in [j.trial for j in again.jobs]
    assert len([r for r in again.log("stop") if r["trial"] == job.trial]) == 1
    assert violations(tmp_path) == []


def test_a_trial_that_repeats_another_cannot_be_stopped(tmp_path: Path) -> None:
    world = finish(tmp_path, planned(TWINS, search("random", 10)))
    alias = next(t for t in world.state.trials.values() if t.same_as)
    with pytest.raises(UsageError, match=f"is {alias.same_as}"):
        world.conductor.stop(alias.name, "me")


def test_a_drained_sweep_gives_no_jobs_and_takes_no_losses(tmp_path: Path) -> None:
    world = World(tmp_path, GRID)
    job = world.conductor.next()
    assert job
    requests.ask(tmp_path, None)
    requests.obey(tmp_path, world.conductor)
    assert world.conductor.draining == requests.USER
    assert world.conductor.finished
    assert world.conductor.next() is None
    world.conductor.lost(job.trial, "code", "killed at the end")
    world.conductor.drain("later")
    assert world.conductor.draining == requests.USER, "the first reason stays"
    world.close()
    assert Counter(finish(tmp_path, GRID).statuses().values()) == {"completed": 8, "diverged": 2}


def test_what_had_begun_goes_on_before_anything_new_begins(tmp_path: Path) -> None:
    world = World(tmp_path, GRID)
    jobs = [world.conductor.next() for _ in range(3)]
    assert jobs[2]
    world.attempt(jobs[2], until=4)
    world.close()
    names = [p.trial for p in GRID.points]
    assert [j.trial for j in finish(tmp_path, GRID).jobs] == [names[2], *names[:2], *names[3:]]


def test_what_a_trial_says_after_its_end_counts_no_more(tmp_path: Path) -> None:
    world = World(tmp_path, GRID)
    job = world.conductor.next()
    assert job
    world.attempt(job)
    count = world.state.count
    assert world.conductor.take(job.trial, [{"kind": "note", "trial": job.trial, "text": "late"}])
    world.conductor.lost(job.trial, "infra", "its process was ended")
    assert world.state.count == count
    assert world.statuses()[job.trial] == "completed"
    world.close()


def by_seed(scores: dict[float, tuple[int, int]]) -> Score:
    """Successes of seeds 0 and 1, by learning rate."""
    return lambda cfg, seed, step: scores[cfg.algo.lr][seed]


@pytest.mark.parametrize("seeds", [(0, 1), (1, 0)])
def test_rungs_decide_on_all_seeds_together(tmp_path: Path, seeds: tuple[int, int]) -> None:
    """The second has seed 0 far below the first's and goes on, since its mean is higher; the third's first seed is
    the best of all, and it stops. In whatever order the seeds report.
    """
    scores = {1e-3: (5, 5), 1e-4: (1, 10), 2e-3: (10, 0), 3e-4: (5, 6)}
    work = planned({LR: list(scores)}, None, RungSpec(4, 2), train__seeds=list(seeds))
    world = finish(tmp_path, work, score=by_seed(scores))
    assert list(world.statuses().values()) == ["completed", "completed", "pruned", "completed"]
    pruned = list(world.state.trials.values())[2].end
    assert pruned
    assert pruned["reason"] == "rung 4: 0.5 is below 0.525, the best 1/2 of 2"
    assert pruned["step"] == 6
    assert violations(tmp_path) == []


def test_a_seed_that_diverged_counts_nothing_at_a_rung(tmp_path: Path) -> None:
    """Rungs at 8. Seed 1 of the second has diverged at 6: its mean is half of seed 0's 10 of 10."""
    scores = {1e-3: (6, 6), 5e-3: (10, 0), 1e-4: (7, 7)}
    world = finish(tmp_path, planned({LR: list(scores)}, None, RungSpec(8, 2)), score=by_seed(scores))
    assert list(world.statuses().values()) == ["completed", "pruned", "completed"]


def test_values_that_are_not_finite_reach_neither_a_study_nor_a_rung(tmp_path: Path) -> None:
    """The first two have a seed or all of them at NaN when the evaluation at 4 comes in."""
    first = ({LR: 5e-2}, {LR: 5e-3}, {LR: 1e-3})
    work = planned({LR: RATES}, search("tpe", 4, "q_mean", first=first), RungSpec(4, 2))
    world = finish(tmp_path, work)
    assert list(world.statuses().values())[:2] == ["diverged", "completed"]
    for t in world.studies():
        assert all(map(math.isfinite, [*(t.values or []), *t.intermediate_values.values(), *t.constraints.values()]))


def test_a_rung_keeps_the_lowest_if_that_is_the_aim(tmp_path: Path) -> None:
    scores = {1e-3: (5, 5), 1e-4: (1, 1), 2e-3: (6, 6)}
    spec = search("random", 3, "return:min", first=tuple({LR: lr} for lr in scores))
    world = finish(tmp_path, planned({LR: RATES}, spec, RungSpec(4, 2)), score=by_seed(scores))
    assert list(world.statuses().values()) == ["completed", "completed", "pruned"]


def test_searched_points_compete_within_their_cell_alone(tmp_path: Path) -> None:
    work = planned(CELLS, search("random", 6), RungSpec(4, 2))
    score: Score = lambda cfg, seed, step: (9 if cfg.algo.alpha == 0.01 else 0) + int(noise(cfg.algo.lr) > 0.5)  # noqa: E731
    world = finish(tmp_path, work, score=score)
    completed = Counter(t.cell for t in world.state.trials.values() if t.status == "completed")
    assert completed[1] > 0, "cell 0 is better throughout"


def test_a_rungs_decision_that_was_not_written_is_taken_by_the_next_driver(tmp_path: Path) -> None:
    scores = {1e-3: (9, 9), 1e-4: (1, 1)}
    work = planned({LR: list(scores)}, None, RungSpec(4, 2))
    finish(tmp_path / "whole", work, score=by_seed(scores))
    lines = (tmp_path / "whole" / records.FILE).read_bytes().splitlines(keepends=True)
    kinds = [records.decode(line)["kind"] for line in lines]
    for cut in (kinds.index("stop"), kinds.index("stop") + 1):
        folder = tmp_path / f"cut{cut}"
        folder.mkdir()
        (folder / records.FILE).write_bytes(b"".join(lines[:cut]))
        world = finish(folder, work, score=by_seed(scores))
        assert world.jobs == [], "nothing is trained for it"
        assert list(world.statuses().values()) == ["completed", "pruned"]
        assert len(world.log("stop")) == 1
        assert violations(folder) == []


def cached(world: World, *trials: str) -> dict[str, Cached]:
    kept = {
        t: [r for r in world.ledger.log if r.get("trial") == t and r["kind"] in ("train", "eval", "end")]
        for t in trials
    }
    return {t: Cached(world.folder, t, rs) for t, rs in kept.items()}


def test_results_of_an_earlier_sweep_are_copied_and_known_to_the_rungs(tmp_path: Path) -> None:
    scores = {1e-3: (9, 9), 1e-4: (1, 1)}
    first = finish(tmp_path / "first", planned({LR: [1e-3]}), score=by_seed(scores))
    (name,) = first.statuses()
    work = planned({LR: [1e-3, 1e-4]}, None, RungSpec(4, 2))
    same = work.points[0].trial
    cache = {same: cached(first, name)[name]}
    world = finish(tmp_path / "second", work, cache=cache, score=by_seed(scores))
    assert [j.trial for j in world.jobs] == [work.points[1].trial]
    assert list(world.statuses().values()) == ["completed", "pruned"]
    assert world.state.trials[same].cached == f"{first.folder}:{name}"
    assert world.state.trials[same].evals == first.state.trials[name].evals
    assert violations(tmp_path / "second") == []


def test_a_copy_that_a_kill_has_cut_is_run_and_no_violation(tmp_path: Path) -> None:
    first = finish(tmp_path / "first", planned({LR: [1e-3]}))
    (name,) = first.statuses()
    work = planned({LR: [1e-3]})
    finish(tmp_path / "whole", work, cache=cached(first, name))
    lines = (tmp_path / "whole" / records.FILE).read_bytes().splitlines(keepends=True)
    for cut in range(3, len(lines)):
        folder = tmp_path / f"cut{cut}"
        folder.mkdir()
        (folder / records.FILE).write_bytes(b"".join(lines[:cut]))
        world = finish(folder, work, cache=cached(first, name) if cut % 2 else None)
        assert len(world.jobs) == (cut + 1) % 2, "copied anew, if it is still there"
        assert world.state.trials[name].evals == first.state.trials[name].evals
        assert world.statuses() == {name: "completed"}
        assert violations(folder) == [], cut


def test_a_warm_start_tells_what_another_sweep_found(tmp_path: Path) -> None:
    """Its diverged and non-finite points too, across a restart; the first question answers differently for it."""
    other = finish(tmp_path / "other", planned({ALPHA: [0.05, 0.2], LR: [1e-3, 5e-3, 5e-2]}))
    work = planned(CELLS, search("tpe", 4))
    hints = priors(work, other.state)
    assert [(h["cell"], h["number"], h["outcome"]["status"]) for h in hints] == [
        (1, -1, "completed"),
        (1, -2, "completed"),
        (1, -3, "diverged"),
    ]
    hints[1]["outcome"]["violation"] = math.nan
    cold, warm = finish(tmp_path / "cold", work), finish(tmp_path / "warm", work, hints=hints)
    assert [t.state.name for t in warm.conductor._search[1].study.trials[:3]] == ["COMPLETE", "COMPLETE", "PRUNED"]
    params = [[t.params for t in w.state.trials.values() if t.cell == 1] for w in (cold, warm)]
    assert params[0] != params[1]
    again = World(tmp_path / "warm", work)
    assert len(again.conductor._search[1].study.trials) == 3 + 4
    again.close()


def test_an_extended_search_goes_on_as_the_same_sweep(tmp_path: Path) -> None:
    work = planned(CELLS, search("tpe", 4))
    before = finish(tmp_path, work)
    with Ledger(tmp_path) as ledger:
        ledger.write([{"kind": "extend", "trials": 2}])
        assert ledger.state.plan
        found = plan_of(ledger.state.plan)
        ledger.check({"digest": found.digest, "data": []})
    after = finish(tmp_path, found)
    assert Counter(t.cell for t in after.state.trials.values()) == {0: 6, 1: 6}
    assert len(after.jobs) == 4
    assert {j.trial for j in after.jobs}.isdisjoint(before.statuses())
    assert World(tmp_path, work).conductor.finished, "the first command knows of it too"


def test_a_retried_trial_is_told_anew_with_those_that_repeat_it(tmp_path: Path) -> None:
    work = planned(TWINS, search("random", 10))
    alone = World(tmp_path / "alone", work)
    alone.run()
    original = next(t.same_as for t in alone.close().trials.values() if t.same_as)
    fate: Fate = lambda c, job, step: "code" if job.trial == original and step == 10 else None  # noqa: E731
    failed = finish(tmp_path / "failed", work, fate=fate)
    assert failed.statuses()[original or ""] == "failed"
    assert Counter(t.state.name for t in failed.studies())["FAIL"] >= 2, "the repeating one is told as well"
    with Ledger(tmp_path / "failed") as ledger:
        ledger.write([{"kind": "retry", "trial": original}])
    again = finish(tmp_path / "failed", work)
    assert [(j.trial, j.attempt) for j in again.jobs] == [(original, 2)]
    assert again.log("start")[-1]["step"] == 8, "from its checkpoint"
    assert set(again.statuses().values()) == {"completed", "queued"}, "queued: those that are never run"
    assert not [t for t in again.studies() if t.state == TrialState.RUNNING]
    told = [t for t in again.studies() if t.intermediate_values and t.state == TrialState.COMPLETE]
    assert {tuple(t.intermediate_values) for t in told} == {(4, 8, 12)}, "what was evaluated before the failure too"
    assert violations(tmp_path / "failed") == []
    World(tmp_path / "failed", work).close()


def test_several_objectives_are_all_told_and_the_first_decides_at_rungs(tmp_path: Path) -> None:
    work = planned({LR: RATES}, search("nsga2", 10, "success_once", "q_excess:min"), RungSpec(8, 2))
    world = finish(tmp_path, work)
    completed = [t for t in world.state.trials.values() if t.status == "completed"]
    assert [t.values for t in world.studies() if t.state == TrialState.COMPLETE] == [
        [t.value("success_once"), t.value("q_excess")] for t in completed
    ]
    assert "pruned" in world.statuses().values()
    assert not [t for t in world.studies() if t.state == TrialState.RUNNING]


def summary(state: State) -> list[tuple[Any, ...]]:
    """All that a result is, in the order of the trials; NaN equals itself as text."""
    return [
        (t.name, t.params, t.same_as, t.status, t.end and t.end["reason"], t.step, t.diverged, repr(t.evals))
        + (repr(sorted(t.metrics.items())), sorted(t.reported.items()))
        for t in state.trials.values()
    ]


def flaky(conductor: Conductor, job: Job, step: int) -> str | None:
    """Decided by what is recorded, so that every driver meets it: the third trial runs out of memory once, the fifth
    dies before it starts, the fourth has a bug."""
    faults, index = conductor.state.trials[job.trial].faults, list(conductor.state.trials).index(job.trial)
    if index == 2 and step == 10 and not faults:
        return "oom"
    if index == 4 and step == 0 and not faults:
        return "infra"
    return "code" if index == 3 and step == 6 else None


SWEEPS = {
    "grid": planned({LR: [1e-3, 5e-2, 1e-4, 5e-3, 3e-4, 2e-4, 1e-2]}, None, RungSpec(4, 2)),
    "tpe in cells": planned(CELLS, search("tpe", 5), RungSpec(4, 2)),
    "repeating": planned(TWINS, search("tpe", 4)),
    "cmaes": planned({LR: RATES, "algo.tau": Float(0.001, 0.1)}, search("cmaes", 8), RungSpec(4, 2)),
    "two aims": planned({LR: RATES}, search("nsga2", 8, "success_once", "q_excess:min")),
}


@pytest.mark.parametrize("name", SWEEPS)
def test_wherever_a_kill_cuts_the_records_the_result_is_the_same(tmp_path: Path, name: str) -> None:
    work = SWEEPS[name]
    whole = finish(tmp_path / "whole", work, fate=flaky)
    expected, lines = summary(whole.state), (tmp_path / "whole" / records.FILE).read_bytes().splitlines(keepends=True)
    assert {t.status for t in whole.state.trials.values()} >= {"completed", "failed"}
    assert violations(tmp_path / "whole") == []
    for cut in range(len(lines) + 1):
        folder = tmp_path / f"cut{cut}"
        folder.mkdir()
        torn = lines[cut][: len(lines[cut]) // 2] if cut < len(lines) and cut % 2 else b""
        (folder / records.FILE).write_bytes(b"".join(lines[:cut]) + torn)
        before = State.read(folder)
        ended = {t.name for t in before.trials.values() if t.ended}
        running = next((t.name for t in before.trials.values() if t.status == "running"), "")
        world = World(folder, work, fate=flaky)
        world.run(ahead=running if cut in whole.whole and cut % 3 else "")
        world.close()
        assert summary(world.state) == expected, cut
        assert ended.isdisjoint(j.trial for j in world.jobs), cut
        assert not [t for t in world.studies() if t.state == TrialState.RUNNING], cut
        assert violations(folder) == [], cut
        assert [r["seq"] for r in world.ledger.log] == list(range(len(world.ledger.log)))


class Killed(BaseException): ...


@pytest.mark.parametrize("name", SWEEPS)
def test_a_driver_that_is_killed_again_and_again_comes_to_the_same_end(tmp_path: Path, name: str) -> None:
    """Nine records later each time, in the middle of a report or not."""
    work, folder, size = SWEEPS[name], tmp_path / "killed", 0
    expected = summary(finish(tmp_path / "whole", work, fate=flaky).state)

    def killed(conductor: Conductor, job: Job, step: int) -> str | None:
        if conductor.state.count > size:
            raise Killed
        return flaky(conductor, job, step)

    for size in range(9, 3000, 9):
        world = World(folder, work, fate=killed)
        try:
            world.run()
            break
        except Killed:
            lines = (folder / records.FILE).read_bytes().splitlines(keepends=True)
            (folder / records.FILE).write_bytes(b"".join(lines[:size]))
        finally:
            world.close()
    assert len(world.log("session")) > 5
    assert summary(world.state) == expected
    assert violations(folder) == []
