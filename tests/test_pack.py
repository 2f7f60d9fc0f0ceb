"""How many trials share a GPU or a node, decided from numbers, and rehearsals with a Ray of pencil and paper."""

import argparse
import contextlib
import dataclasses
import math
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch

from offrl_ray.distributed import launch, options, pack, packing, session
from offrl_ray.distributed.packing import GAIN, MARGIN, RESERVE, Free, Measured, Site
from offrl_ray.errors import UsageError
from offrl_ray.probe import Probe
from offrl_ray.run import Loaded
from offrl_ray.sweep.plan import Demos, Plan, Preset, Resources, Sweep, plan
from tests.conftest import TINY, WriteFile

GIB = 2.0**30
BASE = Resources(cpus_per_trial=1, gpus_per_trial=0.25, evaluators=1, gpus_per_evaluator=0.25)
PLENTY = Site(cpus=64, memory=1000 * GIB, gpu=1, gpu_memory=1000 * GIB)


def measured(trials: int, each: float, gpu: float = GIB, memory: float = GIB) -> Measured:
    return Measured(trials, (each,) * trials, memory, gpu)


def run(site: Site, rate: Any, gpu: Any = lambda n: GIB, fails_at: float = math.inf) -> list[Measured]:
    """What a stage would measure where n trials make rate(n) updates a second in all and take gpu(n) each."""
    found: list[Measured] = []
    while n := packing.following(site, found):
        found.append(Measured(n, failure="no") if n >= fails_at else measured(n, rate(n) / n, gpu(n)))
    return found


# -- which counts are measured, and which one is taken


@pytest.mark.parametrize(
    ("rate", "counts", "best"),
    [
        (lambda n: n, [1, 2, 4, 8, 16, 32, 64], 64),  # no loss at all
        (lambda n: min(n, 4), [1, 2, 4, 8], 4),  # four fill the GPU
        (lambda n: 1.0, [1, 2], 1),  # one does
        (lambda n: 1 / n, [1, 2], 1),  # they are in each other's way
        (lambda n: {1: 1, 2: GAIN, 4: GAIN * (GAIN - 0.01)}.get(n, 9), [1, 2, 4], 2),  # exactly worth it, not quite
    ],
)
def test_counts_double_until_more_trials_are_not_worth_it(rate: Any, counts: list[int], best: int) -> None:
    found = run(PLENTY, rate)
    assert [m.trials for m in found] == counts
    assert packing.choose(PLENTY, found)[0] == best


@pytest.mark.parametrize(
    ("change", "most", "what"),
    [
        ({"cpus": 6}, 6, "CPUs"),
        ({"cpus": 6, "threads": 2}, 3, "CPUs"),
        ({"cpus": 1, "threads": 4}, 1, "CPUs"),  # placing it is not packing's business
        ({"gpu_memory": 5 * MARGIN * GIB}, 5, "GPU memory"),
        ({"gpu_memory": 5 * MARGIN * GIB - 1e6}, 4, "GPU memory"),
        ({"memory": 3 * MARGIN * GIB}, 3, "memory"),
    ],
)
def test_the_last_count_is_the_most_that_fit(change: dict[str, Any], most: int, what: str) -> None:
    site = PLENTY._replace(**change)
    found = run(site, lambda n: n)
    assert found[-1].trials == most
    assert packing.choose(site, found) == (most, f"{what} for no more than {most}")


def test_without_a_gpu_its_memory_does_not_matter() -> None:
    site = PLENTY._replace(gpu=0, gpu_memory=None, cpus=4)
    assert packing.choose(site, run(site, lambda n: n, lambda n: 0.0))[0] == 4


def test_memory_that_grows_with_the_count_is_taken_as_it_was_seen() -> None:
    site = PLENTY._replace(gpu_memory=4 * MARGIN * GIB)
    found = run(site, lambda n: n, lambda n: GIB if n < 4 else 1.1 * GIB)
    assert [m.trials for m in found] == [1, 2, 4]
    assert packing.choose(site, found) == (2, "GPU memory for no more than 3")


def test_a_count_that_fails_ends_the_search_and_is_told() -> None:
    found = run(PLENTY, lambda n: n, fails_at=4)
    assert [m.trials for m in found] == [1, 2, 4]
    assert packing.choose(PLENTY, found) == (2, "4 did not run: no")
    assert "\n             4 no" in packing.table(found)


def test_one_that_fails_alone_is_bad_input() -> None:
    with pytest.raises(UsageError, match="does not run even alone: no"):
        packing.choose(PLENTY, run(PLENTY, lambda n: n, fails_at=1))


def test_one_that_does_not_fit_is_bad_input_with_a_remedy() -> None:
    site = PLENTY._replace(gpu_memory=GIB)
    with pytest.raises(
        UsageError, match=r"1\.2 GiB of GPU memory .* have 1\.0 GiB, room for 0; lower train\.batch_siz"
    ):
        packing.choose(site, run(site, lambda n: n))


# -- a number that was asked for


def test_a_number_must_fit_the_memory_and_nothing_else() -> None:
    site = PLENTY._replace(cpus=1, gpu_memory=4 * MARGIN * GIB, memory=5 * MARGIN * GIB)
    packing.check(site, [measured(1, 1)], 4)
    with pytest.raises(UsageError, match=r"--pack 5: .*of GPU memory.*choose --pack 4") as e:
        packing.check(site, [measured(1, 1)], 5)
    assert len(e.value.problems) == 1
    with pytest.raises(UsageError) as e:
        packing.check(site, [measured(1, 1)], 6)
    assert len(e.value.problems) == 2


# -- what each reserves


@pytest.mark.parametrize("trials", [1, 2, 3, 4, 5, 7, 9, 11, 13])
@pytest.mark.parametrize("share", [1, 0.75, 0.9, 0.7])
def test_so_many_shares_fit_a_gpu_and_one_more_does_not(trials: int, share: float) -> None:
    r = packing.shares(BASE, PLENTY._replace(gpu=share), trials)
    units = round(r.gpus_per_trial * 10_000, 6)  # what Ray counts in
    assert units == int(units)
    assert trials * units <= round(share * 10_000)
    assert (trials + 1) * units > share * 10_000 - trials


@pytest.mark.parametrize(("cpus", "trials", "each"), [(64, 4, 1), (4, 4, 1), (3, 4, 0.75), (1, 3, 0.3333)])
def test_beside_a_gpu_trials_reserve_no_more_cpus_than_there_are(cpus: float, trials: int, each: float) -> None:
    assert packing.shares(BASE, PLENTY._replace(cpus=cpus), trials).cpus_per_trial == each


def test_without_a_gpu_the_cpus_are_shared_out_and_all_else_stays() -> None:
    base = dataclasses.replace(BASE, gpus_per_trial=0, evaluators=3)
    site = Site(cpus=8, memory=GIB)
    assert packing.shares(base, site, 4) == dataclasses.replace(base, cpus_per_trial=2)
    assert packing.shares(base, site, 16).cpus_per_trial == 0.5


# -- what is left to trials


def node(cpus: float = 16, gpus: float = 2, memory: float = 100 * GIB) -> dict[str, float]:
    return {"CPU": cpus, "GPU": gpus, "memory": memory}


def test_evaluators_have_their_share_of_every_gpu() -> None:
    nodes = [node(16), node(10)]
    free = Free(nodes[0], "here", 1000 * GIB, gpu=70 * GIB, gpu_total=80 * GIB)
    site = packing.site_of(free, nodes, dataclasses.replace(BASE, evaluators=4, cpus_per_evaluator=1), True, 2)
    assert site.cpus == 10 / 2 - 1
    assert site.gpu == 0.75
    assert site.gpu_memory == pytest.approx((70 - 80 * (0.25 + RESERVE)) * GIB)
    assert site.memory == pytest.approx((100 * (1 - RESERVE) / 2 - 1) * GIB)
    assert site.threads == 2
    one_each = packing.site_of(free, nodes, dataclasses.replace(BASE, evaluators=None), True, 1)  # type: ignore[arg-type]
    assert one_each.gpu == 0.75
    two_each = packing.site_of(free, nodes, dataclasses.replace(BASE, evaluators=5), True, 1)
    assert two_each.gpu == 0.5


def test_a_node_without_gpu_trials_has_its_own_cpus_and_what_memory_is_free() -> None:
    nodes = [node(8), node(32)]
    base = dataclasses.replace(BASE, gpus_per_trial=0, evaluators=2, cpus_per_evaluator=1, gpus_per_evaluator=0)
    site = packing.site_of(Free(nodes[0], "here", 50 * GIB), nodes, base, False, 1)
    assert (site.cpus, site.gpu, site.gpu_memory) == (7, 0, None)
    assert site.memory == pytest.approx((50 * (1 - RESERVE) - 1) * GIB)


@pytest.mark.parametrize(
    ("change", "word"),
    [({"gpus_per_evaluator": 1}, "--gpus-per-evaluator"), ({"cpus_per_evaluator": 8}, "--cpus-per-evaluator")],
)
def test_evaluators_that_leave_nothing_are_bad_input(change: dict[str, Any], word: str) -> None:
    free = Free(node(), "here", GIB)
    with pytest.raises(UsageError, match=word):
        packing.site_of(free, [node()], dataclasses.replace(BASE, evaluators=2, **change), True, 1)


def test_slots_of_a_cluster() -> None:
    nodes = [node(16, 2), node(2, 2)]
    assert packing.slots(dataclasses.replace(BASE, evaluators=4), nodes, True) == 6 + 2
    cpu = dataclasses.replace(BASE, gpus_per_trial=0, evaluators=2, gpus_per_evaluator=0)
    assert packing.slots(cpu, nodes, False) == 18
    assert packing.slots(dataclasses.replace(cpu, cpus_per_trial=100), nodes, False) == 1
    assert packing.slots(dataclasses.replace(cpu, cpus_per_trial=0.1), [node(0.7)], False) == 7


def test_the_heaviest_point_is_the_slowest_of_those_with_the_most_memory() -> None:
    cpu = [Probe(9, 1, 100), Probe(1, 1, 199), Probe(2, 1, 195), Probe(1, 1, 200)]
    assert packing.heaviest(cpu) == 2
    assert packing.heaviest([*cpu, Probe(1, 1, 1, gpu_memory=300)]) == 4


# -- rehearsals


class Paper:
    """A Ray whose calls are done when their result is asked for."""

    exceptions = ray.exceptions

    def get(self, refs: Any, timeout: float) -> Any:
        return [ref() for ref in refs] if isinstance(refs, list) else refs()

    def put(self, value: Any) -> Any:
        return value


class Actor:
    """Trains at 10 updates a second, 4 GiB of RAM and 1.5 GiB of a GPU of 80 GiB each; the `fails`-th raises."""

    def __init__(self, stage: "Stage", number: int):
        self.stage, self.number = stage, number

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *args: lambda: getattr(self.stage, name)(self, *args))


class Stage:
    def __init__(self, error: Exception | None = None, fails: int = 99):
        self.error, self.fails, self.actors, self.prepared = error, fails, list[Actor](), 0
        self.weighed = 0.0

    def start(self) -> Actor:
        self.actors.append(Actor(self, len(self.actors)))
        return self.actors[-1]

    def free(self, actor: Actor) -> Free:
        return Free(node(), "here", 90 * GIB, 79 * GIB - 1.5 * GIB * self.prepared - self.weighed, 80 * GIB)

    def prepare(self, actor: Actor, cfg: Any, data: Any) -> None:
        self.prepared += 1
        if self.error and self.prepared >= self.fails:
            raise self.error

    def weigh(self, actor: Actor, cfg: Any, data: Any) -> Probe:
        if self.error and self.fails == 0:
            raise self.error
        self.weighed = GIB / 2  # the context that it has from now on
        return Probe(0.1, 1)

    def run(self, actor: Actor, updates: int) -> Probe:
        return Probe(0.1, 1, int(4 * GIB), int(GIB))


CELL: Any = SimpleNamespace(cfg="config", axes={"algo.alpha": 0.1})


@pytest.fixture
def paper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "ray", Paper())


def raised(cause: Exception) -> Exception:
    """As Ray hands on what an actor raised."""
    return ray.exceptions.RayTaskError("run", "Traceback", cause).as_instanceof_cause()


@pytest.mark.usefixtures("paper")
def test_what_trials_take_of_a_gpu_is_what_it_has_less_while_they_run() -> None:
    """Torch's own figure of 1 GiB knows nothing of the driver's context."""
    play = Stage()
    stage = pack._Stage(play.start, 1)
    stage.weigh(CELL, "data")  # type: ignore[arg-type]
    stage.cast(CELL, "data")  # type: ignore[arg-type]
    assert stage.measure(1, 5) == Measured(1, (10.0,), 4 * GIB, 1.5 * GIB)
    assert stage.measure(4, 5) == Measured(4, (10.0,) * 4, 4 * GIB, 1.5 * GIB)
    assert play.prepared == 4
    assert len(play.actors) == 1 + 4


@pytest.mark.usefixtures("paper")
@pytest.mark.parametrize(
    ("error", "word"),
    [
        (
            raised(torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB")),
            "out of memory (OutOfMemoryError: CUDA out",
        ),
        (raised(MemoryError("no room")), "out of memory (MemoryError: no room"),
        (ray.exceptions.OutOfMemoryError("killed by the memory monitor"), "out of memory"),
        (raised(RuntimeError("CUBLAS_STATUS_ALLOC_FAILED")), "CUBLAS_STATUS_ALLOC_FAILED"),
        (ray.exceptions.ActorDiedError(), "died"),
        (ray.exceptions.GetTimeoutError("late"), "late"),
    ],
    ids=lambda x: "" if isinstance(x, str) else type(x).__name__,
)
def test_out_of_memory_while_measuring_is_an_answer(error: Exception, word: str) -> None:
    stage = pack._Stage(Stage(error, fails=3).start, 1)
    stage.cast(CELL, "data")  # type: ignore[arg-type]
    found, trials, why = pack._best(stage, PLENTY, 0.1)
    assert trials == 2
    assert [bool(m.failure) for m in found] == [False, False, True]
    assert word in why


@pytest.mark.usefixtures("paper")
@pytest.mark.parametrize("fails", [0, 1])
def test_a_trial_that_does_not_run_alone_is_bad_input(fails: int) -> None:
    stage = pack._Stage(Stage(raised(torch.OutOfMemoryError("CUDA out of memory")), fails).start, 1)

    def rehearse() -> None:
        stage.weigh(CELL, "data")  # type: ignore[arg-type]
        stage.cast(CELL, "data")  # type: ignore[arg-type]
        pack._given(stage, PLENTY, 1)

    with pytest.raises(UsageError, match="out of memory"):
        rehearse()


# -- options


def args(*given: str) -> argparse.Namespace:
    sweep = SimpleNamespace(question="?", axes={}, presets={}, variant="cpql", name="x")
    return options.parser(sweep).parse_args(given)  # type: ignore[arg-type]


@pytest.mark.parametrize("given", ["auto", "1", "12"])
def test_pack_is_auto_or_a_number(given: str) -> None:
    assert options.limit_problems(args("--pack", given)) == []
    assert options.resources(args("--pack", given), BASE) == dataclasses.replace(BASE, pack=given)
    assert options.resources(args(), BASE).pack is None


@pytest.mark.parametrize("given", ["0", "-1", "2.5", "all", "", "²"])
def test_any_other_word_is_refused(given: str) -> None:
    (problem,) = options.limit_problems(args(f"--pack={given}"))
    assert problem == f"--pack must be auto or a whole number > 0, but got {given!r}"


def test_shares_by_hand_and_pack_exclude_each_other() -> None:
    problems = options.limit_problems(args("--pack", "2", "--gpus-per-trial", "0.5", "--cpus-per-trial", "1"))
    assert ["--gpus-per-trial 0.5" in problems[0], "--cpus-per-trial 1" in problems[1], len(problems)] == [
        True,
        True,
        2,
    ]


@pytest.mark.parametrize(
    ("asked", "word"),
    [("auto", "as many trials as is best side"), ("3", "3 trials side"), (None, "per trial 1 CPU, 0.25 GPU")],
)
def test_a_description_promises_no_shares_that_packing_will_change(asked: str | None, word: str) -> None:
    assert word in launch._reserved(dataclasses.replace(BASE, pack=asked))


# -- dry runs


@pytest.fixture
def elsewhere(write_file: WriteFile, monkeypatch: pytest.MonkeyPatch) -> tuple[Plan, Loaded]:
    """A plan for a GPU, on a machine that has none, and a Ray that is there at once."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(session, "ray_session", lambda *about: contextlib.nullcontext())
    of = Preset(about="", overrides={**TINY, "train.device": "cuda"}, demos=Demos(env_id="Toy-v1", episodes=1))
    sweep = Sweep(name="x", question="?", variant="cpql", axes={"algo.alpha": [0.1, 0.2]}, presets={"full": of})
    loaded, work = launch.load(plan(sweep, "full", {}, [str(write_file([6, 9]))]))
    return work, loaded


def refuse(*about: Any) -> None:
    raise UsageError(["trials need a GPU, but none has one"])


def test_without_its_device_a_dry_run_says_what_is_not_known(elsewhere: tuple[Plan, Loaded]) -> None:
    told = launch.cost(*elsewhere, BASE, "local")
    assert told.startswith(
        "time and memory are not known: train.device is cuda, and this machine has no GPU; --address"
    )
    assert "; a checkpoint has up to 0.1 MiB, all that stay" in told


def test_a_dry_run_measures_on_the_cluster_that_is_named(
    elsewhere: tuple[Plan, Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [Probe(5.0, 2**20, 2**20, 2**30)] * 2
    asked: list[Resources] = []
    monkeypatch.setattr(pack, "pack", lambda w, l, r, say: asked.append(r) or pack.Packing(r, "", found, 2))
    told = launch.cost(*elsewhere, BASE, "10.0.0.1:6379")
    assert told.startswith("measured with 3 updates of 2 points: 5e+03")
    assert "2:00 min of training, 1:00 min on 2 side by side" in told
    assert asked == [BASE]


def test_a_cluster_without_gpus_is_what_is_not_known(
    elsewhere: tuple[Plan, Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack, "pack", refuse)
    told = launch.cost(*elsewhere, BASE, "10.0.0.1:6379")
    assert told.startswith("time and memory are not known: trials need a GPU, but none has one; --address")
    with pytest.raises(UsageError, match="none has one"):
        launch.cost(*elsewhere, dataclasses.replace(BASE, pack="auto"), "local")


def test_a_dry_run_shows_what_packing_would_choose(
    elsewhere: tuple[Plan, Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = pack.Packing(BASE, "4 side by side", [Probe(5.0, 1)] * 2, 4)
    monkeypatch.setattr(pack, "pack", lambda *about: chosen)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("offrl_ray.probe.probes", refuse)
    told = launch.cost(*elsewhere, dataclasses.replace(BASE, pack="auto"), "local")
    assert told.startswith("4 side by side\nmeasured with 3 updates")
    assert "0:30 min on 4 side by side" in told


@pytest.mark.usefixtures("paper")
def test_what_acts_while_it_trains_is_not_packed() -> None:
    cell = SimpleNamespace(cfg=SimpleNamespace(online=object()))
    base = dataclasses.replace(BASE, pack="auto")
    found = pack.pack(SimpleNamespace(cells=[cell]), None, base, print)  # type: ignore[arg-type]
    assert (found.resources, found.probes) == (base, [None])
    assert "no probe rehearses" in found.told
