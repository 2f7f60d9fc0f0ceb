"""A sweep on a real Ray of two nodes, and the Rays that it does not join."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.cluster import Cluster, free_port
from tests.distributed.faulty import EVAL_EVERY
from tests.distributed.user import ROOT, Session, log_of, sessions, violations

pytestmark = pytest.mark.ray
ENTRY = ROOT / "tests/distributed/faulty.py"
REFUSE_SECONDS = 5  # for the check alone; it takes 2 at most
LONG = 1200  # updates, 12 seconds at least
Start = Callable[..., Session]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def two(home: Path) -> Iterator[Cluster]:
    """Nodes one and two, of 2 CPUs and 2 GPUs each that nobody uses."""
    cluster = Cluster(home)
    try:
        for name in ("one", "two"):
            cluster.add(name, cpus=2, gpus=2)
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def start(home: Path, tmp_path: Path) -> Iterator[Start]:
    """Start a sweep of as many trials as learning rates into tmp_path/faulty-smoke, on a Ray at an address."""

    def begin(address: str, *extra: str, rates: Any = (0.001,), script: Path = ENTRY, **env: str) -> Session:
        own = {"RATES": json.dumps(list(rates)), "RAY_ADDRESS": address, **env}
        return session(home, script, "--out", tmp_path, *extra, env=own)

    with sessions() as session:
        yield begin


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "faulty-smoke"


def refused(session: Session, folder: Path, *words: str) -> None:
    assert session.ended() == 2, session.text
    for word in words:
        assert word in session.text
    assert not folder.exists()


def test_what_cannot_work_is_refused_before_anything_is_written(
    two: Cluster, start: Start, folder: Path, home: Path, tmp_path: Path
) -> None:
    none = tmp_path / "none"
    none.mkdir()
    cache = {"XDG_CACHE_HOME": str(home / "cache")}
    missing = start(two.address, HOME=str(none), **cache)
    refused(missing, folder, f"the Ray at {two.address} wants a token", "~/.ray/auth_token", "scp HEAD:.ray/auth_token")
    wrong = start(two.address, RAY_AUTH_TOKEN="f" * 64)
    refused(wrong, folder, f"the Ray at {two.address} has another token than RAY_AUTH_TOKEN")
    nobody = start(f"127.0.0.1:{free_port()}")
    refused(nobody, folder, "no Ray answers at")
    wide = start(two.address, "--cpus-per-trial", "3", "--gpus-per-trial", "4")
    refused(wide, folder, "a trial of 3 CPU and 4 GPU fits on no node", "one (", "two (", "has 2 CPU and 2 GPU")
    alone = start("local", "--cpus-per-trial", "3000")
    refused(alone, folder, "a trial of 3000 CPU", "lower --cpus-per-trial")


def test_the_checks_of_an_address_take_no_time(two: Cluster, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from offrl_ray.distributed import address
    from offrl_ray.errors import UsageError

    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    address.check(two.address)
    began = time.monotonic()
    for name, value in (("HOME", "/nowhere"), ("RAY_AUTH_TOKEN", "f" * 64)):
        with monkeypatch.context() as m:
            m.setenv(name, value)
            with pytest.raises(UsageError):
                address.check(two.address)
    assert time.monotonic() - began < REFUSE_SECONDS


def test_an_open_ray_is_joined_only_by_who_says_so(start: Start, folder: Path, home: Path) -> None:
    cluster = Cluster(home, token=False)
    try:
        cluster.add("open", cpus=2)
        refused(start(cluster.address), folder, f"the Ray at {cluster.address} is open")
        session = start(cluster.address, RAY_AUTH_MODE="disabled")
        session.until(lambda: len(log_of(folder)) > 3)
        assert "RAY_AUTH_MODE=disabled: whoever reaches this Ray can run code as you" in session.text
    finally:
        cluster.close()


SHARES = """
import json, sys
from offrl_ray.distributed import session

with session.ray_session(session.locate("auto"), "shares"):
    import ray
    from offrl_ray.distributed import evaluators, reserve

    class Actor(evaluators.RolloutActor):
        def place(self):
            return ray.get_runtime_context().get_node_id(), ray.get_gpu_ids()

    evaluators.RolloutActor = Actor
    told = []
    for count, cpus, gpus in json.loads(sys.argv[1]):
        actors = reserve.start_actors(count, f"shares-{len(told)}", cpus, gpus, print, lambda: False)
        told.append(ray.get([a.place.remote() for a in actors.values()]))
        free = ray.available_resources()
        assert free["GPU"] == 4 - count * gpus, free
        for a in actors.values():
            ray.kill(a)
        for group in ray.util.placement_group_table().values():
            if group["state"] == "CREATED":
                ray.util.remove_placement_group(ray.util.get_placement_group(group["name"]))
print(json.dumps(told))
"""


def test_evaluators_have_gpus_and_nodes_of_their_own(two: Cluster, home: Path, tmp_path: Path) -> None:
    (tmp_path / "shares.py").write_text(SHARES)
    asked = [[4, 0, 0.25], [8, 0, 0.25], [2, 1, 0], [4, 0, 0]]
    session = Session(home, tmp_path / "shares.py", json.dumps(asked), env={"RAY_ADDRESS": two.address})
    try:
        assert session.ended() == 0, session.text
        one_each, two_each, cpus, nothing = json.loads(session.text.splitlines()[-1])
    finally:
        session.close()
    assert set(Counter((node, *gpus) for node, gpus in one_each).values()) == {1}
    assert set(Counter((node, *gpus) for node, gpus in two_each).values()) == {2}
    assert len({node for node, _ in nothing}) == 2
    for places in (one_each, two_each, cpus):
        assert set(Counter(node for node, _ in places).values()) == {len(places) // 2}


HOG = """
import ray, time
ray.init(logging_level="ERROR", namespace="hog")
groups = [ray.util.placement_group([{"CPU": 2}]) for _ in ray.nodes()]
assert all(g.wait(60) for g in groups)
print("full", flush=True)
time.sleep(1000)
"""


def test_a_trial_that_waits_says_for_what_and_who_has_it(
    two: Cluster, start: Start, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "hog.py").write_text(HOG)
    hog = start(two.address, script=tmp_path / "hog.py", RAY_AUTH_MODE="token")
    hog.until(lambda: "full" in hog.text)
    session = start(two.address, "--set", "train.steps=100")
    session.until(lambda: "waiting for 3" in session.text, 240)
    said = session.text.partition("waiting for 3")[2]
    assert "1 trials, each for 1 CPU and 0 GPU on one node" in said
    for node in ("one", "two"):
        assert f"{node} (" in said
    assert said.count("0 of 2 CPU free, 2 of 2 GPU free; held by other drivers' groups 2 CPU") == 2
    assert "it starts when what holds them ends" in said
    hog.close()
    assert session.ended() == 0, session.text


def test_a_node_that_dies_takes_no_trial_with_it(two: Cluster, start: Start, folder: Path) -> None:
    """Trials and evaluators on both nodes; the second is lost in the middle, and what was there goes on elsewhere."""
    extra = ("--evaluators", "4", "--gpus-per-evaluator", "0.25", "--gpus-per-trial", "0.25")
    extra += ("--set", f"train.steps={LONG}")
    session = start(two.address, *extra, rates=[0.001, 0.002, 0.003, 0.004, 0.005, 0.006])
    lost = session.until(lambda: any(r["kind"] == "eval" for r in log_of(folder)) and two.actors("two", "FaultyTrial"))
    session.until(lambda: two.actors("one", "FaultyTrial"))
    assert [len(two.actors(node, "FaultyActor")) for node in ("one", "two")] == [2, 2]
    two.kill("two")
    assert session.ended(400) == 0, session.text
    assert violations(folder) == []
    log = log_of(folder)
    assert [r["status"] for r in log if r["kind"] == "end"] == ["completed"] * 6
    assert len([r for r in log if r["kind"] == "fault" and r["failure"] == "infra"]) >= len(lost) > 0
    (told,) = (r for r in log if r["kind"] == "session")
    assert [n["name"] for n in sorted(told["nodes"], key=lambda n: n["name"])] == ["one", "two"]
    assert (told["address"], told["resources"]["evaluators"]) == (two.address, 4)
    assert f"Ray: the one at {two.address} (RAY_ADDRESS): 2 nodes, 4 CPU, 4 GPU" in session.text
    assert {r["step"] for r in log if r["kind"] == "eval"} == set(range(EVAL_EVERY, LONG + 1, EVAL_EVERY))
