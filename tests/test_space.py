import json
import subprocess
import sys
from typing import Any

import pytest

from offrl_ray.errors import UsageError
from offrl_ray.sweep.space import Choice, Domain, Float, Int, from_record, key_problems, parse, probes, size
from tests.conftest import REPOSITORY

DOMAINS = [Float(0.0, 1.0), Float(1e-4, 1e-2, log=True), Int(1, 8), Int(1, 1024, log=True), Choice(["a", "b"])]
DOMAINS += [Choice([[128, 128], (256,)]), Choice([None, 1.5, True]), Choice([1, 2])]


@pytest.mark.parametrize("domain", DOMAINS, ids=str)
def test_a_domain_is_a_record_and_a_text_and_back(domain: Domain) -> None:
    assert from_record(json.loads(json.dumps(domain.record()))) == domain
    assert parse(str(domain)) == domain
    assert domain.problems() == []


@pytest.mark.parametrize(
    ("text", "domain"),
    [
        ("1e-4:1e-2:log", Float(1e-4, 1e-2, log=True)),
        ("0:1", Float(0, 1)),
        ("-1.5:2", Float(-1.5, 2)),
        ("1:8:int", Int(1, 8)),
        ("1:8:log:int", Int(1, 8, log=True)),
        ("mse,nll", Choice(["mse", "nll"])),
        ("none,0.5", Choice([None, 0.5])),
        ("[[64,64],[128]]", Choice([[64, 64], [128]])),
        ("cuda:0,cuda:1", Choice(["cuda:0", "cuda:1"])),
    ],
)
def test_the_texts_of_the_command_line(text: str, domain: Domain) -> None:
    assert parse(text) == domain
    assert type(parse(text)) is type(domain)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1:x", ["'x'"]),
        ("1:2:lin", [":lin"]),
        ("2:1:lin", [":lin", "low < high"]),
        ("2:1", ["low < high"]),
        ("0:1:log", ["low > 0"]),
        ("1:0:log", ["low < high"]),
        ("5:0:log:lin:3", [":lin", ":3", "low < high"]),
        ("1.5:8:int", ["whole"]),
        ("nan:1", ["finite"]),
        ("0:Infinity", ["finite"]),
        ("true:2", ["finite"]),
    ],
)
def test_a_text_that_is_no_range_is_refused_with_every_reason(text: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as e:
        parse(text)
    assert len(e.value.problems) == len(words), e.value.problems
    assert all(w in p for w, p in zip(words, e.value.problems, strict=True))


WRONG: list[tuple[Domain, list[str]]] = [
    (Float(1, 1), ["low < high"]),
    (Float(0, -1, log=True), ["low < high", "low > 0"]),
    (Int(0, 3, log=True), ["low > 0"]),
    (Int(0.5, 3), ["whole"]),  # type: ignore[arg-type]
    (Int(True, 3), ["whole"]),
    (Float("a", 3), ["finite"]),  # type: ignore[arg-type]
    (Choice([]), ["at least two"]),
    (Choice([3]), ["at least two"]),
    (Choice([1, 1.0]), ["different"]),
]


@pytest.mark.parametrize(("domain", "words"), WRONG, ids=str)
def test_a_wrong_domain_names_its_key_and_every_reason(domain: Domain, words: list[str]) -> None:
    found = key_problems("algo.lr", domain)
    assert len(found) == len(words), found
    assert all(p.startswith("algo.lr must") and w in p for w, p in zip(words, found, strict=True))


@pytest.mark.parametrize("key", ["data.act_horizon", "env.id", "env.max_steps", "train.seeds"])
def test_what_needs_its_own_data_is_an_axis_of_the_grid_and_never_searched(key: str) -> None:
    (problem,) = key_problems(key, Int(1, 2))
    assert key in problem
    assert "axis of the grid" in problem


@pytest.mark.parametrize("domain", DOMAINS, ids=str)
def test_optuna_chooses_within_the_domain_and_values_survive_both_ways(domain: Domain) -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
        chosen = study.ask({"x": domain.distribution()}).params["x"]
        value = domain.decode(chosen)
        assert domain.encode(json.loads(json.dumps(value))) == chosen
        assert type(value) in {Float: (float,), Int: (int,)}.get(
            type(domain), (str, list, int, float, bool, type(None))
        )
        if isinstance(domain, Choice):
            assert value in domain.values
        else:
            assert domain.low <= value <= domain.high


@pytest.mark.parametrize(
    ("domain", "value"),
    [(Float(0, 1), 1.5), (Float(0, 1), True), (Float(0, 1), "a"), (Float(0, 1), float("nan")), (Int(1, 4), 2.5)]
    + [(Int(1, 4), 5), (Choice(["a", "b"]), "c"), (Choice([[1], [2]]), [3])],
    ids=str,
)
def test_a_value_outside_is_refused(domain: Domain, value: Any) -> None:
    with pytest.raises(ValueError, match="must be"):
        domain.encode(value)


def test_every_two_ends_are_tried_together() -> None:
    space: dict[str, Domain] = {"a": Float(0, 1), "b": Int(5, 90), "c": Choice(["x", "y", "z"])}
    tried = list(probes(space))
    for k1, k2 in [("a", "b"), ("a", "c"), ("b", "c")]:
        for i in (0, -1):
            for j in (0, -1):
                pair = (space[k1].tries[i], space[k2].tries[j])
                assert any((t[k1], t[k2]) == pair for t in tried), (k1, k2, pair)
    assert {t["c"] for t in tried} == {"x", "y", "z"}
    assert any(0 < t["a"] < 1 for t in tried)
    assert {5, 6, 90} <= {t["b"] for t in tried}


def test_the_points_of_a_space_are_counted() -> None:
    assert size({"a": Int(3, 5), "b": Choice("xy")}) == 6
    assert size({"a": Int(3, 5), "b": Float(0, 1)}) is None
    assert size({}) == 1


def test_a_space_can_be_declared_before_optuna_is_loaded() -> None:
    code = "import sys, offrl_ray.sweep.plan, offrl_ray.sweep.search; print('optuna' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
