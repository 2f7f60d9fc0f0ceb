"""Everything that an online double DQN lives through while it learns: data of every quality, from chance to mastery.

The protocol of seed document 001: uniformly random actions until 1024 transitions are stored, from then on one update
of 64 transitions per environment step; an action is random with probability max(0.01, 0.95 * 0.995^i) in episode i.
The learner is the variant cql_dqn without its conservative term.

Deviation: the notebook takes the cap of 200 steps for a terminal, here a cap is `truncated`, and bootstrapped from.
"""

from collections.abc import Generator, Iterator, Sequence

import torch
from torch import Tensor

from offrl_ray.algos import cql_dqn
from offrl_ray.collect.files import Label, Maker, Origin
from offrl_ray.envs.classic import GymEnv
from offrl_ray.envs.experts import Trajectory
from offrl_ray.fields import hparams
from offrl_ray.types import Batch, EnvStep, Spec

NUM_ACTIONS = {"CartPole-v1": 2}
"""The environments that it learns in."""
CONFIG = cql_dqn.Config(cql_alpha=0.0, lr=2e-3)
RANDOM_STEPS, BUFFER, BATCH = 1024, 12_000, 64


def _problems(noise: Sequence[float], workers: int | None) -> Iterator[str]:
    if noise:
        yield f"noise is for scripted experts; a learner explores by itself, but got {', '.join(map(str, noise))}"
    if workers is not None:
        yield f"workers are for scripted experts; a learner's episodes follow from each other, but got {workers}"


def _origin(env_id: str, max_steps: int) -> Origin:
    text = "all episodes of an online double DQN, from its first; epsilon is its share of random actions"
    return Origin(env_id, max_steps, "native", "native", "native", NUM_ACTIONS[env_id], "rl", text)


def _labels(episodes: int, noise: Sequence[float], seed: int) -> list[Label]:
    return [Label(seed + i, {"epsilon": max(0.01, 0.95 * 0.995**i)}) for i in range(episodes)]


class _Replay:
    """The newest transitions."""

    def __init__(self, obs_dim: int):
        self.frames = torch.zeros(BUFFER, 2, obs_dim)  # before and after the step
        self.numbers = torch.zeros(BUFFER, 3)  # action, reward, terminal
        self.count = 0

    def add(self, frame: Tensor, action: Tensor, step: EnvStep) -> None:
        at = self.count % BUFFER
        self.frames[at] = torch.cat([frame, step.obs["state"]])
        self.numbers[at] = torch.stack([action[0, 0], step.reward[0], step.terminated[0].float()])
        self.count += 1

    def sample(self, g: torch.Generator) -> Batch:
        rows = torch.randint(min(self.count, BUFFER), (BATCH,), generator=g)
        frames, (action, reward, terminal) = self.frames[rows], self.numbers[rows].T
        chunk, one = action[:, None, None], torch.ones(BATCH, 1)
        before, after = ({"state": frames[:, i, None]} for i in (0, 1))
        return Batch(before, chunk, chunk, reward[:, None], one, terminal, after, torch.zeros(BATCH))


def _spec(env: GymEnv) -> Spec:
    """Raw observations; nothing is known of rewards beforehand, and nothing here depends on their bounds."""
    width = env.obs_dim
    return Spec(
        obs_shape={"state": (width,)},
        obs_mean={"state": (0.0,) * width},
        obs_std={"state": (1.0,) * width},
        action_dim=1,
        action_mean=(0.0,),
        action_std=(1.0,),
        obs_horizon=1,
        pred_horizon=1,
        act_horizon=1,
        q_horizon=1,
        act_offset=0,
        reward_low=0.0,
        reward_high=0.0,
        reward_ends_episode=False,
        num_actions=env.num_actions,
    )


def _trajectories(
    origin: Origin, labels: Sequence[Label], seed: int, workers: int | None
) -> Generator[Trajectory, None, None]:
    """One after the other, each by the policy that the ones before it have made."""
    torch.set_num_threads(1)  # more make so small a network slower
    env = GymEnv(origin.env_id, max_steps=origin.max_steps)
    spec, hp, g = _spec(env), hparams(CONFIG), torch.Generator().manual_seed(seed)
    alg, replay = cql_dqn.make(CONFIG, spec), _Replay(env.obs_dim)
    state = alg.init(g)
    try:
        for label in labels:
            frames, actions, steps = [env.reset([label.seed])["state"]], list[Tensor](), list[EnvStep]()
            while not steps or not (steps[-1].terminated | steps[-1].truncated):
                explores = float(torch.rand((), generator=g)) < label.facts["epsilon"]
                if explores or replay.count < RANDOM_STEPS:
                    action = torch.randint(env.num_actions, (1, 1), generator=g).float()
                else:
                    action = alg.act(state, {"state": frames[-1][:, None]}, {})[:, 0]
                step = env.step(action)
                replay.add(frames[-1], action, step)
                if replay.count >= RANDOM_STEPS:
                    state, _ = alg.update(state, replay.sample(g), {}, hp)
                frames.append(step.obs["state"])
                actions.append(action)
                steps.append(step)
            yield _trajectory(frames, actions, steps)
    finally:
        env.close()


def _trajectory(frames: list[Tensor], actions: list[Tensor], steps: list[EnvStep]) -> Trajectory:
    _, *columns = zip(*steps, strict=True)
    reward, success, terminated, truncated = (torch.cat(column).numpy() for column in columns)
    obs, action = torch.cat(frames).numpy(), torch.cat(actions).numpy()
    return Trajectory(obs, action, reward, success, terminated, truncated, env_states={})


MAKER = Maker(200, _problems, _origin, _labels, _trajectories)
