"""The best points of a sweep again, on other seeds: what is chosen, what is new about it, and what is refused."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import offrl_ray.online
from offrl_ray.config import from_dict, resolve, to_dict
from offrl_ray.distributed import launch, manage
from offrl_ray.distributed.drive import drive
from offrl_ray.errors import UsageError
from offrl_ray.records import FILE, Writer, read
from offrl_ray.run import Loaded
from offrl_ray.sweep import reuse
from offrl_ray.sweep.confirmation import Ask, best_again, demonstrated, problems, record, seeds, table
from offrl_ray.sweep.fsck import check
from offrl_ray.sweep.ledger import Ledger
from offrl_ray.sweep.plan import Demos, Keep, Plan, Preset, Resources, Sweep, plan, plan_of, plan_record, point
from offrl_ray.sweep.rungs import RungSpec
from offrl_ray.sweep.space import Float
from offrl_ray.sweep.spec import Objective, SearchSpec
from offrl_ray.sweep.state import State
from tests import ledgers
from tests.conftest import TINY, Length, WriteFile
from tests.ledgers import Record, numbered
from tests.test_online import TINY as ONLINE
from tests.test_online import online as online_run

ALPHAS = [0.1, 0.2, 0.3, 0.4]
NAMES = [f"{i:02d}-alpha_{a}" for i, a in enumerate(ALPHAS)]
LR = Float(1e-4, 1e-2, log=True)
HERE = Path("x")
Capture = pytest.CaptureFixture[str]


def planned(axes: dict[str, Any] | None = None, search: SearchSpec | None = None, **settings: Any) -> Plan:
    changes = {k.replace("__", "."): v for k, v in settings.items()}
    base = {**TINY, **changes} if changes.get("algo.name") != "rlpd" else {**ONLINE, **changes}
    preset = Preset(about="", overrides=base, demos=Demos(env_id="Toy-v1", episodes=1))
    axes = {"algo.alpha": ALPHAS} if axes is None else axes
    sweep = Sweep(name="toy", question="What?", variant=base["algo.name"], axes=axes, presets={"tiny": preset})
    made = plan(sweep, "tiny", {}, base.get("data.files", ["a.h5"]), search)
    return made.in_envs(["Toy-v1"] * len(made.cells))


def told(work: Plan, data: Sequence[Record] = ({"file": "a.h5", "digest": "d"},), **resources: Any) -> Record:
    sweep = Sweep(name="toy", question="What?", variant="cpql", axes={}, presets={})
    versions = {"code": reuse.code_version()}
    made = plan_record(sweep, "tiny", work, list(data), versions, Resources(**resources), Keep(top=4))
    return made | {"fresh": False, "priors": []}


def life(p: Record, hits: int, status: str = "completed", lost: Sequence[int] = ()) -> Iterator[Record]:
    """A trial whose seeds, but for those that diverge, succeed in so many of their last episodes."""
    name, config, well = p["trial"], p["config"], [s for s in p["seeds"] if s not in lost]
    columns: Record = {"env": config["env"], "members": well}
    yield ledgers.start(name)
    for seed in well:
        yield ledgers.train(name, p["steps"], seed, loss=float(hits))
    count, first = config["eval"]["episodes"], config["eval"]["seed"]
    columns |= {"return": [0.5] * count, "length": [1] * count, "success_at_end": [0] * count}
    columns |= {"episodes": count, "episode_seeds": [first + i for i in range(count)]}
    once = [1] * hits + [0] * (count - hits)
    for seed in well:
        yield ledgers.evaluation(name, p["steps"], seed, once=once, **columns)
    yield ledgers.end(
        name, status, diverged={str(s): "loss is nan" for s in lost}, failure="oom" * (status == "failed")
    )


def swept(hits: Sequence[int] = (1, 0, 2, 1), work: Plan | None = None, *more: Record) -> list[Record]:
    work = work or planned()
    ends = [r for p, h in zip(work.points, hits, strict=False) for r in life(p.record(), h)]
    return [told(work), ledgers.session(), *ends, *more]


def state(*args: Any) -> State:
    return State(numbered(swept(*args)))


def best(found: State, top: int, objective: Objective | None = None) -> list[str]:
    return [p.trial for p in best_again(found, Ask(top, objective=objective)).points]


# -- which points


def test_the_best_come_first_and_of_equals_those_that_were_planned_first() -> None:
    assert best(state(), 4) == [NAMES[i] for i in (2, 0, 3, 1)]
    assert best(state(), 2) == [NAMES[2], NAMES[0]]


def test_another_metric_may_judge_and_less_of_it_be_better() -> None:
    assert best(state(), 3, Objective("success_once", "min")) == [NAMES[i] for i in (1, 0, 3)]
    assert best(state(), 2, Objective("loss", "min")) == [NAMES[1], NAMES[0]]
    assert best(state(), 1, Objective("loss")) == [NAMES[2]]
    assert best_again(state(), Ask(1, objective=Objective("loss"))).objectives == (Objective("loss"),)


def test_only_completed_trials_count_and_a_diverged_seed_counts_as_no_success() -> None:
    points = [p.record() for p in planned().points]
    log = [*life(points[0], 1), *life(points[1], 2, lost=[1]), *life(points[2], 2, "pruned")]
    found = state([], None, *log, *life(points[3], 2, "failed"))
    assert found.trials[NAMES[1]].value("success_once") == 0.5
    assert best(found, 2) == NAMES[:2]
    assert problems(HERE, found, State(), Ask(2)) == []
    (problem,) = problems(HERE, found, State(), Ask(3))
    assert problem.startswith("--top must be at most 2, ")
    assert "but got 3" in problem


def searched() -> tuple[State, dict[str, Record]]:
    """Two points in each of two cells, of which the last is the same run as the first."""
    work = planned({"algo.alpha": [0.1, 0.2], "algo.lr": LR}, SearchSpec("random", 2))
    asked: dict[str, Record] = {}
    for i, lr in enumerate((1e-3, 2e-3, 3e-3, 1e-3)):
        made = point(work.cells[i % 2], i // 2, {"algo.lr": lr}).record()
        same = next(iter(asked)) if i == 3 else None
        asked[made["trial"]] = {"kind": "point", **made, "number": i // 2, "params": {"algo.lr": lr}, "same_as": same}
    log = [r for p, hits in zip(asked.values(), (1, 0, 2), strict=False) for r in life(p, hits)]
    return state([], work, *asked.values(), *log), asked


def test_points_of_a_search_are_run_again_as_they_were_asked() -> None:
    found, asked = searched()
    again = best_again(found, Ask(3))
    first, second, third = list(asked)[:3]
    assert (
        [p.trial for p in again.points] == [third, first, second] == [third, "00-alpha_0.1-t000", "01-alpha_0.2-t000"]
    )
    assert (again.search, again.axes, list(again.domains)) == (None, {"algo.alpha": [0.1, 0.2]}, ["algo.lr"])
    for p in again.points:
        assert p.axes == asked[p.trial]["point"]
        assert to_dict(p.cfg)["algo"] == asked[p.trial]["config"]["algo"]
    (problem,) = problems(HERE, found, State(), Ask(4))
    assert "at most 3" in problem, "the one that repeats another is none of its own"


# -- what is new about them


def test_a_point_is_the_same_but_for_its_seeds() -> None:
    found = state()
    again = best_again(found, Ask(4, 3))
    assert found.plan
    assert again.digest != found.plan["digest"]
    for p in again.points:
        before = from_dict(found.trials[p.trial].config)
        assert p.axes == found.trials[p.trial].point
        assert (p.cfg.train.seeds, p.cfg.eval.seed, p.cfg.eval.episodes) == ((2, 3, 4), 20_000, 2)
        train = dataclasses.replace(p.cfg.train, seeds=before.train.seeds)
        assert dataclasses.replace(p.cfg, train=train, eval=before.eval) == before
    assert {p.cfg.eval.episodes for p in best_again(found, Ask(4, episodes=50)).points} == {50}


def test_no_result_of_the_sweep_can_be_taken_for_one_of_its_confirmation() -> None:
    found = state()
    for p in best_again(found, Ask(4, 2)).points:
        assert reuse.key(to_dict(p.cfg), ["d"], "c") != reuse.key(found.trials[p.trial].config, ["d"], "c")


@pytest.mark.parametrize(("used", "fresh"), [([0, 1], [2, 3, 4]), ([7, 3], [8, 9, 10]), ([11], [12, 13, 14])])
def test_training_seeds_begin_above_the_sweeps(used: list[int], fresh: list[int]) -> None:
    (again,) = best_again(state([1], planned(train__seeds=used)), Ask(1, 3)).points
    assert list(again.cfg.train.seeds) == fresh


@pytest.mark.parametrize(
    ("seed", "episodes", "first"),
    [(10_000, 20, 20_000), (0, 2, 10_000), (10_000, 10_000, 20_000), (10_000, 10_001, 30_000), (123_456, 2, 130_000)],
)
def test_evaluation_episodes_begin_above_the_sweeps(seed: int, episodes: int, first: int) -> None:
    found = state([1], planned(eval__seed=seed, eval__episodes=episodes))
    (again,) = best_again(found, Ask(1)).points
    assert (again.cfg.eval.seed, again.cfg.eval.episodes) == (first, episodes)


def test_the_longest_evaluation_of_any_trial_counts() -> None:
    found = state([1, 1], planned({"eval.episodes": [20, 20_000]}))
    assert best_again(found, Ask(1)).points[0].cfg.eval.seed == 30_000


def test_evaluation_episodes_begin_above_those_of_the_data(write_file: WriteFile) -> None:
    def seeded(_: Any, meta: Record) -> None:
        meta["episodes"][1]["episode_seed"] = 20_000

    given, silent = write_file(damage=seeded), write_file(name="other")
    assert (demonstrated([str(given), str(silent)]), demonstrated([str(silent)])) == (20_001, 0)
    assert demonstrated(["none.h5"]) == 0
    found = State(numbered([told(planned(), [{"file": str(given), "digest": "d"}]), *swept()[1:]]))
    assert best_again(found, Ask(1)).points[0].cfg.eval.seed == 30_000


def test_evaluation_episodes_begin_above_all_that_a_run_may_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    work = planned({"algo.cta_ratio": [2, 4]}, algo__name="rlpd", **{"data.files": []})
    (again,) = best_again(state([1], work), Ask(1)).points
    assert again.cfg.eval.seed == 2_147_490_000
    assert again.cfg.eval.seed % 10_000 == 0
    assert again.cfg.eval.seed >= offrl_ray.online.SEEDS
    monkeypatch.setattr(offrl_ray.online, "SEEDS", 1)
    cfg = resolve(ONLINE)
    _, source = online_run(cfg)
    source._act(range(2), [torch.Generator().manual_seed(s) for s in (0, 1)], {})
    assert [life.seed for life in source.lives] == [0, 0], "SEEDS bounds what it draws"


def test_the_plan_says_what_it_confirms_and_comes_back_whole(tmp_path: Path) -> None:
    found = State(numbered([told(planned()._replace(rungs=RungSpec(4)), evaluators=3), *swept()[1:]]))
    assert found.plan
    again = best_again(found, Ask(2))
    with Writer(tmp_path) as w:
        w.write(**record(Path("runs/toy-tiny"), found, again, [{"file": "a.h5", "digest": "d"}], {"code": "c"}))
    (made,) = read(tmp_path).records
    points = [NAMES[2], NAMES[0]]
    assert made["confirms"] == {"folder": "toy-tiny", "digest": found.plan["digest"], "points": points}
    assert plan_of(made) == again
    assert made["digest"] == again.digest
    told_ = {k: made[k] for k in ("name", "question", "preset", "axes", "rungs", "search", "claims", "fresh")}
    expected = {"name": "toy-confirm", "question": "What?", "preset": "tiny", "axes": {"algo.alpha": ALPHAS}}
    assert told_ == expected | {"rungs": None, "search": None, "claims": [], "fresh": True}
    assert (made["resources"]["evaluators"], made["keep"]) == (3, {"top": 4, "bytes": None})


def test_an_ordinary_plan_confirms_nothing() -> None:
    assert (told(planned())["confirms"], told(planned())["claims"]) == (None, [])


# -- what is refused


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (Ask(5), ["--top", "at most 4", "got 5"]),
        (Ask(0), ["--top must be >= 1", "0"]),
        (Ask(seeds=0), ["--seeds must be >= 1"]),
        (Ask(episodes=0), ["--episodes must be >= 1"]),
        (Ask(objective=Objective("los")), ["--metric", "'los'", "did you mean loss"]),
        (Ask(objective=Objective("loss", "least")), ["--metric", ":least"]),
        (Ask(objective=Objective("", "min")), ["--metric", "''"]),
    ],
    ids=str,
)
def test_what_cannot_be_confirmed_is_named(ask: Ask, words: list[str]) -> None:
    (problem,) = problems(HERE, state(), State(), ask)
    assert all(w in problem for w in words), problem


def test_all_problems_come_at_once() -> None:
    assert len(problems(HERE, state(), State(), Ask(0, 0, 0, Objective("a b", "least")))) == 5
    found = state([1], planned({"train.seeds": [[0], [1, 2]], "eval.seed": [0, 5]}))
    assert [p.split(" ")[0] for p in problems(HERE, found, State(), Ask(2))] == ["eval.seed", "train.seeds", "--top"]


def test_an_axis_of_evaluation_episodes_may_stay_or_not_be_replaced() -> None:
    found = state([1, 1], planned({"eval.episodes": [2, 4]}))
    assert problems(HERE, found, State(), Ask(2)) == []
    (problem,) = problems(HERE, found, State(), Ask(2, episodes=8))
    assert problem.startswith("eval.episodes is an axis of the sweep")


def test_seeds_end_somewhere() -> None:
    found = state([1], planned(eval__seed=2**32 - 2))
    with pytest.raises(UsageError, match=r"eval.seed \+ eval.episodes must be <="):
        best_again(found, Ask(1))


def begun(found: State, ask: Ask, *log: Record) -> State:
    """What DIR/confirm holds."""
    return State(numbered([record(Path("toy"), found, best_again(found, ask), [], {}), ledgers.session(), *log]))


def test_what_was_begun_goes_on_only_as_it_was_asked() -> None:
    found, ask = state(), Ask(2, 3, 50)
    held = begun(found, ask)
    assert problems(HERE, found, held, ask) == []
    for other in (Ask(1, 3, 50), Ask(2, 4, 50), Ask(2, 3), Ask(2, 3, 50, Objective("loss")), Ask(9, 3, 50)):
        (problem,) = problems(HERE, found, held, other)
        assert (
            "x/confirm holds a confirmation with --top 2 --seeds 3 --episodes 50 --metric success_once, but" in problem
        )
    (problem,) = problems(HERE, found, held, Ask(2, 3, None, Objective("success_once", "min")))
    assert "but got --top 2 --seeds 3 --episodes 2 --metric success_once:min; ask with" in problem
    assert problems(HERE, found, begun(found, Ask()), Ask()) == []


def test_another_sweep_in_the_place_is_refused() -> None:
    found = state()
    (problem,) = problems(HERE, found, found, Ask(1))
    assert problem == "x/confirm holds a sweep that confirms nothing, toy; move it away"
    other = state((1, 0, 2, 1), planned(train__batch_size=5))
    (problem,) = problems(HERE, other, begun(found, Ask(1)), Ask(1))
    assert problem == "x/confirm holds a confirmation of another sweep, toy-confirm; move it away"


# -- what is told


def test_the_two_values_stand_side_by_side_and_nothing_lost_is_averaged_away() -> None:
    found, names = state(), [NAMES[2], NAMES[0], NAMES[3], NAMES[1]]
    points = [p.record() for p in best_again(found, Ask(4, 3)).points]
    log = [*life(points[0], 1), *life(points[1], 2, lost=[3]), *life(points[2], 0, "diverged", lost=[2, 3, 4])]
    held = begun(found, Ask(4, 3), *log)
    head, *rows = table(found, held, names, Objective("success_once")).splitlines()
    assert head.split() == ["point", "tuned", "success_once", "confirmed", "drop"]
    cells = [[c.strip() for c in row.split("  ") if c] for row in rows]
    assert [c[0] for c in cells] == names
    assert cells[0][1:] == ["1 [0.51, 1], n = 2", "0.5 [0.188, 0.812], n = 3", "+0.5"]
    assert cells[1][2].endswith("n = 3, 1 diverged")
    assert cells[1][3] == "-0.167"
    assert cells[2][2:] == ["diverged, 3 diverged"]
    assert cells[3][2:] == ["queued"]
    *_, last = table(found, held, names[:1], Objective("loss", "min")).split()
    assert last == "-1", "less is better, and it fell from 2 to 1"


def test_a_value_counts_when_its_trial_has_completed() -> None:
    found = state()
    (p,) = (p.record() for p in best_again(found, Ask(1)).points)
    *unfinished, end = life(p, 1)
    for log, value in ((unfinished, "running"), ([*unfinished, end], "1, n = 5")):
        (_, row) = table(found, begun(found, Ask(1), *log), [p["trial"]], Objective("loss")).splitlines()
        assert [c.strip() for c in row.split("  ") if c][1:3] == ["2, n = 2", value]


def test_before_anything_ran_there_is_no_second_value() -> None:
    (_, row) = table(state(), State(), NAMES[2:3], Objective("success_once")).splitlines()
    assert row.endswith("not yet")


def test_seeds_are_told_with_those_that_they_keep_away_from() -> None:
    found = state([1], planned(train__seeds=[4, 1]))
    training, evaluation = seeds(found, best_again(found, Ask(1, 2))).split("; ")
    assert training == "seeds 5, 6 in place of the sweep's 1 to 4"
    assert evaluation == "evaluation episodes from seeds 20000 to 20001 in place of 10000 to 10001"


# -- the command, without Ray

Driven = list[tuple[Path, Plan, Record, str]]


@pytest.fixture
def driven(monkeypatch: pytest.MonkeyPatch) -> Driven:
    """What was given to the driver, which records the plan and no more."""
    calls: Driven = []

    def answer(folder: Path, work: Plan, told: Record, loaded: Loaded, address: str) -> int:
        calls.append((folder, work, told, address))
        with Ledger(folder) as ledger:
            ledger.check({"digest": work.digest, "data": loaded.files})
            ledger.write([] if ledger.state.plan else [told])
        return 1

    monkeypatch.setattr(manage, "drive", answer)
    return calls


@pytest.fixture
def folder(tmp_path: Path, write_file: WriteFile) -> Path:
    """A sweep of two learned and two open points on a real file."""
    path = write_file([6, Length(9, ()), 12])
    loaded, work = launch.load(planned(**{"data.files": [str(path)]}))
    ledgers.write(tmp_path / "toy", [told(work, loaded.files), *swept([1, 2], work)[1:]])
    return tmp_path / "toy"


def test_a_confirmation_is_an_ordinary_sweep_inside_the_folder(folder: Path, driven: Driven, capsys: Capture) -> None:
    assert manage.confirm(folder, Ask(2, 3), "auto") == 1
    ((place, work, told, address),) = driven
    assert (place, address) == (folder / "confirm", "auto")
    assert [p.trial for p in work.points] == told["confirms"]["points"] == [NAMES[1], NAMES[0]]
    assert told["data"] == (State.read(folder).plan or {})["data"]
    out = capsys.readouterr().out
    assert out.startswith("What?\n\n  01-alpha_0.2\n  00-alpha_0.1\n2 points x seeds 2, 3, 4, 12 updates")
    assert "evaluation episodes from seeds 20000 to 20001 in place of 10000 to 10001" in out
    assert out.splitlines()[-2].split()[:2] == [NAMES[1], "1"]
    assert "by now" not in out
    assert "the code" not in out
    assert check(folder).violations == check(place).violations == []


def test_a_dry_run_writes_nothing_and_tells_the_cost(folder: Path, driven: Driven, capsys: Capture) -> None:
    assert manage.confirm(folder, Ask(2, 3), dry_run=True) == 0
    out = capsys.readouterr().out
    assert out.count("not yet") == 2
    assert "2 points need about" in out
    assert (driven, (folder / "confirm").exists()) == ([], False)


def test_what_was_begun_stays_when_others_become_better(folder: Path, driven: Driven, capsys: Capture) -> None:
    manage.confirm(folder, Ask(1))
    third = planned().points[2].record()
    with Ledger(folder) as ledger:
        ledger.write(list(life(third, 2)) + [{"kind": "retry", "trial": NAMES[1]}])
    assert manage.confirm(folder, Ask(1)) == 1
    assert f"by now the best are {NAMES[2]}; the confirmation stays" in capsys.readouterr().out
    assert [told["confirms"]["points"] for _, _, told, _ in driven] == [[NAMES[1]]] * 2
    (held,) = read(folder / "confirm").records
    assert driven[1][2] == held


def test_other_code_is_told(folder: Path, driven: Driven, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(manage, "versions", lambda: {"code": "newer"})
    manage.confirm(folder, Ask(1))
    assert "the code is not the one that the sweep was begun with" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["changed", "missing", "a file in the way", "too few", "another ask", "a single run"])
def test_a_refusal_comes_before_anything_is_written(kind: str, folder: Path, driven: Driven) -> None:
    data, ask = Path(State.read(folder).plan["data"][0]["file"]), Ask(2)  # type: ignore[index]
    words = {"changed": "has changed since", "missing": "no such file", "a file in the way": "is no folder"}
    words |= {"too few": "at most 2", "another ask": "holds a confirmation with", "a single run": "holds no sweep"}
    if kind == "changed":
        meta = json.loads(data.with_suffix(".json").read_text())
        data.with_suffix(".json").write_text(json.dumps(meta | {"more": 1}))
    elif kind == "missing":
        data.unlink()
    elif kind == "a file in the way":
        (folder / "confirm").write_text("precious")
    elif kind == "another ask":
        manage.confirm(folder, Ask(1))
    elif kind == "a single run":
        only = {k: v for k, v in read(folder).records[0].items() if k != "cells"}
        ledgers.write(folder, [only])
    before, calls = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}, len(driven)
    with pytest.raises(UsageError, match=words[kind]):
        manage.confirm(folder, ask._replace(top=3) if kind == "too few" else ask)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    assert len(driven) == calls


def test_two_drivers_do_not_confirm_the_same(folder: Path, driven: Driven) -> None:
    with Ledger(folder / "confirm"), pytest.raises(UsageError, match=r"confirm is being written.*offrl-ray stop"):
        manage.confirm(folder, Ask(1))


def test_beside_a_driver_of_the_sweep_one_can_confirm(folder: Path, driven: Driven) -> None:
    with Ledger(folder):
        assert manage.confirm(folder, Ask(1)) == 1
    assert len(driven) == 1


# -- claims


def ended(tmp_path: Path, claims: list[Any]) -> tuple[Plan, Record]:
    work = planned({"algo.alpha": [0.1]})
    log = swept([1], work)
    log[0] |= {"data": [], "claims": claims}
    ledgers.write(tmp_path, log)
    return work, log[0]


@pytest.mark.parametrize("declared", [[{"id": "a"}], [{"id": "b"}], []])
def test_claims_stay_as_they_were_when_a_sweep_began(declared: list[Any], tmp_path: Path, capsys: Capture) -> None:
    work, plan_ = ended(tmp_path, [{"id": "a"}])
    before = (tmp_path / FILE).read_bytes()
    assert drive(tmp_path, work, plan_ | {"claims": declared}, Loaded([], {}), "local") == 0
    assert ("claims stay as they were" in capsys.readouterr().out) == (declared != [{"id": "a"}])
    assert (tmp_path / FILE).read_bytes() == before


def test_claims_are_recorded_as_json_and_are_no_part_of_the_work(tmp_path: Path) -> None:
    sweep = Sweep(
        name="toy", question="", variant="cpql", axes={}, presets={}, claims=[{"arms": ("a", "b"), "p": 0.05}]
    )
    made = plan_record(sweep, "tiny", planned(), [], {}, Resources(), Keep())
    assert made["claims"] == [{"arms": ["a", "b"], "p": 0.05}]
    assert made["digest"] == told(planned())["digest"]


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        (
            [{"id": "a", "text": "?", "checks": [{"kind": "trend", "measure": "return"}]}, "text"],
            ["[0].checks[0]", "[1]"],
        ),
        ([{"id": "a", "level": float("nan")}], [""]),
        ([{"id": object()}], [""]),
    ],
)
def test_claims_that_are_none_are_named_with_all_else(bad: list[Any], named: list[str]) -> None:
    preset = Preset(about="", overrides=TINY | {"algo.alpha": -1}, demos=Demos(env_id="Toy-v1", episodes=1))
    sweep = Sweep(name="toy", question="", variant="cpql", axes={}, presets={"tiny": preset}, claims=bad)
    with pytest.raises(UsageError) as e:
        plan(sweep, "tiny", {}, ["a.h5"])
    *found, other = e.value.problems
    assert [p.split()[4] for p in found] == [f"script{n}" for n in named]
    assert other.startswith("algo.alpha")
