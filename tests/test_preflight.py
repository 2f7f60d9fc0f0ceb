"""What fits a cluster and what does not, with clusters of pencil and paper."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from offrl_ray.config import TrainConfig
from offrl_ray.distributed import preflight
from offrl_ray.distributed.feasible import Room, resources, spread
from offrl_ray.distributed.preflight import Kind, Node
from offrl_ray.errors import UsageError
from offrl_ray.sweep.plan import Resources

HERE = {"offrl-ray": "0.1", "code": "abc", "ray": "2.60.0", "torch": "2.13.0+cpu", "python": "3.11.7", "numpy": "2"}
GPU_SWEEP = Resources(gpus_per_trial=0.25, evaluators=None, cpus_per_evaluator=1, gpus_per_evaluator=0.25)


def node(name: str = "one", cpus: float = 4, gpus: float = 0, **more: Any) -> Node:
    return Node(name, "10.0.0.1", {"CPU": cpus, "GPU": gpus}, HERE, [], {})._replace(**more)


def cfg(device: str = "cpu", backend: str = "physx_cpu") -> Any:
    return SimpleNamespace(train=TrainConfig(device=device), env=SimpleNamespace(sim_backend=backend))


def refused(r: Resources, nodes: list[Node], cfgs: Any = (), kinds: Any = ()) -> list[str]:
    with pytest.raises(UsageError) as e:
        resources(r, cfgs, nodes, HERE, kinds)
    return e.value.problems


def test_a_sweep_that_fits_is_told_its_resources() -> None:
    assert resources(Resources(evaluators=2), [cfg()], [node()], HERE, []) == (Resources(evaluators=2), [])


@pytest.mark.parametrize(
    ("r", "gpus", "count"),
    [(GPU_SWEEP, (2, 1), 3), (GPU_SWEEP, (2, 0), 2), (Resources(evaluators=None), (2, 1), 1)],
)
def test_no_number_of_evaluators_is_one_per_gpu_of_the_cluster(r: Resources, gpus: Any, count: int) -> None:
    found, notes = resources(r, [], [node(gpus=g) for g in gpus], HERE, [])
    assert (found, notes) == (dataclasses.replace(r, evaluators=count), [])


def test_evaluators_go_to_gpus_and_nodes_of_their_own_before_they_share() -> None:
    rooms = [Room("a", {"CPU": 9, "GPU": 2}), Room("b", {"CPU": 9, "GPU": 1}), Room("c", {"CPU": 9})]
    names = [room and room.name for room in spread(rooms, 7, 1, 0.4)]
    assert sorted(names[:3], key=str) == ["a", "a", "b"]
    assert sorted(names[3:6], key=str) == ["a", "a", "b"]
    assert names[6] is None
    cpu = [Room("a", {"CPU": 4}), Room("b", {"CPU": 2})]
    assert [room and room.name for room in spread(cpu, 4, 1, 0)] == ["a", "b", "a", "b"]


def test_a_trial_that_fits_on_no_node_is_told_node_by_node_with_the_option() -> None:
    (problem,) = refused(Resources(cpus_per_trial=8), [node(), node("two", 2)])
    assert problem == (
        "a trial of 8 CPU and 0 GPU fits on no node: one (10.0.0.1) has 4 CPU and 0 GPU; "
        "two (10.0.0.1) has 2 CPU and 0 GPU; lower --cpus-per-trial, or join a cluster that has it"
    )


def test_two_shares_of_half_a_gpu_are_no_gpu() -> None:
    r = Resources(gpus_per_trial=1, evaluators=None, gpus_per_evaluator=0.5)
    (problem,) = refused(r, [node(gpus=2)])
    assert "has 4 CPU and 2 GPU, 2 evaluators take 0 CPU and 1 GPU of it" in problem
    assert problem.endswith("or what evaluators take: --evaluators, --gpus-per-evaluator")
    resources(dataclasses.replace(r, evaluators=1), [], [node(gpus=2)], HERE, [])


def test_evaluators_that_do_not_fit() -> None:
    r = dataclasses.replace(GPU_SWEEP, evaluators=3, gpus_per_evaluator=0.4, gpus_per_trial=0.1)
    (problem,) = refused(r, [node(gpus=1)])
    assert problem.startswith("1 of 3 evaluators of 1 CPU and 0.4 GPU each fit on no node: one (10.0.0.1) has")


def test_nodes_that_differ_are_named_with_both_values() -> None:
    old = node("two", versions=HERE | {"code": "def", "torch": "2.13.0", "numpy": "1"})
    lost = node("three", versions={})
    assert refused(Resources(), [node(), old, lost]) == [
        "node two (10.0.0.1) has code def, and here is abc; install the same on all nodes",
        "node three (10.0.0.1) did not answer within 120 s; look at it, or take it out of the cluster",
    ]


def test_a_node_without_the_results_folder() -> None:
    (problem,) = refused(Resources(), [node(sees={"/r": True}), node("two", sees={"/r": False})])
    assert problem.startswith("node two (10.0.0.1) does not have the folder /r, or cannot write to it")


def test_gpus_that_are_wanted_and_not_reserved_or_not_there() -> None:
    work = [cfg("cuda:0", "physx_cuda")]
    found = refused(Resources(), [node(gpus=1)], work)
    assert [p.split(",")[0] for p in found] == [
        "train.device is cuda",
        "env.sim_backend is physx_cuda",
        "node one (10.0.0.1) has GPUs",
    ]
    none = refused(dataclasses.replace(GPU_SWEEP, evaluators=1), [node()], work)
    assert [p.split(" fit")[0] for p in none] == [
        "1 of 1 evaluators of 1 CPU and 0.25 GPU each",
        "a trial of 1 CPU and 0.25 GPU",
    ]
    assert refused(Resources(gpus_per_trial=1.5), [node(gpus=2)])[0].startswith("--gpus-per-trial must be a share")


def test_what_an_autoscaler_can_bring_is_waited_for() -> None:
    gpu = Kind("gpu_worker", {"CPU": 8, "GPU": 1}, 4)
    found, notes = resources(GPU_SWEEP, [], [node()], HERE, [gpu])
    assert found.evaluators == 4  # as many as GPUs that can come
    assert [n.split(" wait ")[0] for n in notes] == ["4 evaluators", "trials"]
    assert all("nodes of gpu_worker" in n for n in notes)
    assert "fits on no node" in refused(Resources(gpus_per_trial=2), [node()], [], [gpu])[0]


def test_a_node_that_is_there_already_is_not_brought_again() -> None:
    gpu = Kind("gpu_worker", {"CPU": 8, "GPU": 1}, 1)
    whole = Resources(gpus_per_trial=1, evaluators=1, gpus_per_evaluator=0.5)
    assert "a trial of 1 CPU and 1 GPU fits on no node" in refused(whole, [node(cpus=8, gpus=1)], [], [gpu])[0]
    two = gpu._replace(most=2)
    assert resources(whole, [], [node(cpus=8, gpus=1)], HERE, [two])[1][0].startswith("trials wait for nodes")


def test_kinds_of_a_cluster_that_ray_up_made(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(ray._private.state.state, "get_cluster_config", lambda: None)
    assert preflight.kinds() == []
    (tmp_path / "ray_bootstrap_config.yaml").write_text(
        "max_workers: 3\navailable_node_types:\n"
        "  head: {resources: {CPU: 2}, max_workers: 0}\n  gpu: {resources: {CPU: 8, GPU: 1}, max_workers: 9}\n"
    )
    assert preflight.kinds() == [Kind("gpu", {"CPU": 8, "GPU": 1}, 3)]


def test_this_machine_without_ray() -> None:
    own = preflight.machine(HERE)
    assert own.has("CPU") >= 1
    assert resources(Resources(), [cfg()], [own], HERE, [])[0] == Resources()
