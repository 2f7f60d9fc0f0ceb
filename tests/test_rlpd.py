"""RLPD's block: many critic steps on disjoint minibatches, one actor step; which critics make the target."""

import pytest
import torch

from offrl_ray.algos import functional as fn
from offrl_ray.algos import make
from offrl_ray.algos.rlpd import _Rlpd
from offrl_ray.types import Batch
from tests.toys import SPEC, algorithm, batch, different, generator, run_config

MEAN = {"cta_ratio": 1, "num_min": 1}


def part(b: Batch, i: int, size: int) -> Batch:
    return fn.select(b, slice(i * size, (i + 1) * size))


def test_a_block_is_its_critic_steps_in_turn_and_one_actor_step_on_the_last_minibatch() -> None:
    alg, hp = algorithm("rlpd", {"cta_ratio": 3})
    one = _Rlpd(run_config("rlpd", {"cta_ratio": 3}).algo, SPEC)
    state, data, noise = alg.init(generator()), batch(generator(1), 12), alg.update_noise(generator(2), 12)
    assert alg.minibatches == 3
    expected = state
    for i in range(3):
        small = part(data, i, 4)
        mine = {"eps_next": noise["eps_next"][i], "subset": noise["subset"][i]}
        expected, _ = one.critic_step(expected, small, fn.encode(small.obs), mine, hp)
    assert not different(expected["policy"], state["policy"])
    expected, _ = one.actor_step(expected, small, fn.encode(small.obs), {"eps": noise["eps"]}, hp)
    found, _ = alg.update(state, data, noise, hp)
    assert not different(found, expected)


def test_every_chunk_of_the_batch_trains_the_critic() -> None:
    alg, hp = algorithm("rlpd", {"cta_ratio": 3})
    state, data, noise = alg.init(generator()), batch(generator(1), 12), alg.update_noise(generator(2), 12)
    plain, _ = alg.update(state, data, noise, hp)
    for i in range(12):
        reward = data.reward.clone()
        reward[i] += 1
        other, _ = alg.update(state, data._replace(reward=reward), noise, hp)
        assert different(other["critic"], plain["critic"])


def test_subsets_are_drawn_without_replacement_and_evenly() -> None:
    counts = torch.zeros(4, 4)
    alg = make(run_config("rlpd").algo, SPEC)
    for seed in range(600):
        first, second = alg.update_noise(generator(seed), 4)["subset"][0].argsort()[:2].tolist()
        assert first != second
        counts[first, second] += 1
    off = counts[~torch.eye(4, dtype=torch.bool)]
    assert (off - 50).abs().max() < 5 * 50**0.5


def test_a_target_over_all_critics_is_the_minimum_and_over_one_is_that_one() -> None:
    cfg = run_config("rlpd", {"cta_ratio": 1, "num_min": 4}).algo
    for num_min in (4, 1):
        one = _Rlpd(run_config("rlpd", {"cta_ratio": 1, "num_min": num_min}).algo, SPEC)
        _, hp = algorithm("rlpd", {"cta_ratio": 1})
        state, b = one.init(generator()), batch(generator(1), 6)
        cond, noise = fn.encode(b.next_obs), one.update_noise(generator(2), 6)
        noise = {"eps_next": noise["eps_next"][0], "subset": noise["subset"][0]}
        action, _ = one.pi.sample(state["policy"], cond, noise["eps_next"])
        q = one.q(state["critic_target"], cond, action)
        chosen = q.min(0).values if num_min == cfg.num_min else q[noise["subset"].argmin()]
        torch.testing.assert_close(one.next_value(state, cond, noise, hp), chosen)


def test_the_policy_climbs_the_mean_of_all_critics() -> None:
    """Raising one critic everywhere by a constant raises what the actor sees by a quarter of it."""
    one = _Rlpd(run_config("rlpd", MEAN).algo, SPEC)
    _, hp = algorithm("rlpd", MEAN)
    state, b = one.init(generator()), batch(generator(1), 6)
    noise = {"eps": one.update_noise(generator(2), 6)["eps"]}
    bias = state["critic"]["b_out"].clone()
    bias[2] += 1.0
    raised = {**state, "critic": {**state["critic"], "b_out": bias}}
    seen = [one.actor_loss(s["policy"], s, b, fn.encode(b.obs), noise, hp)[1]["actor_q"] for s in (state, raised)]
    assert (seen[1] - seen[0]).item() == pytest.approx(0.25, rel=1e-5)


def test_a_time_limit_is_bootstrapped_through() -> None:
    """What follows a chunk that no terminal state ended matters; behind a terminal state nothing does."""
    alg, hp = algorithm("rlpd", {"cta_ratio": 1})
    state, noise = alg.init(generator()), alg.update_noise(generator(2), 6)
    b = batch(generator(1), 6)
    for terminal, matters in ((torch.zeros(6), True), (torch.ones(6), False)):
        here = b._replace(terminal=terminal)
        there = here._replace(next_obs={k: v + 1 for k, v in b.next_obs.items()})
        one, two = (alg.update(state, x, noise, hp)[0]["critic"] for x in (here, there))
        assert bool(different(one, two)) == matters
