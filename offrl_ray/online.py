"""Data that a run gathers itself: its policy acts in environments while it trains.

One environment and one replay buffer per member. What an environment executes during an update is absorbed at the next
one, so environments and training may run beside each other; where they run changes nothing. An episode is a function of
its seed and its actions, so a checkpoint holds those of the running one and a resumed run plays them again.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Generator, Tensor

from offrl_ray.algos.functional import select, stack, to_device, tree_map
from offrl_ray.config import RunConfig
from offrl_ray.data.dataset import Dataset
from offrl_ray.data.hdf5 import Episode
from offrl_ray.data.replay import Replay
from offrl_ray.policy import Policy, Window
from offrl_ray.types import Algorithm, Batch, Env, Metrics, Obs, State

SEEDS = 2**31
"""episodes that a run gathers start from seeds below, drawn at random"""
RECENT = 20
"""finished episodes that the metrics of the exploring policy are over"""


class Job(NamedTuple):
    """What an environment is to do: start an episode if there is a seed, then execute raw actions [n, A]."""

    seed: int | None
    actions: Tensor


class Segment(NamedTuple):
    """What came of a job, up to the episode's end: m steps, and one frame more if it began with a reset."""

    obs: Obs  # raw frames, key -> [m or m + 1, ...]
    reward: Tensor  # [m]
    success: Tensor  # [m] bool
    terminated: Tensor  # [m] bool
    truncated: Tensor  # [m] bool


def execute(env: Env, job: Job) -> Segment:
    """Do a job in a vector environment of one."""
    frames = [] if job.seed is None else [env.reset([job.seed])]
    flags = []
    for action in job.actions:
        step = env.step(action[None])
        frames.append(step.obs)
        flags.append(torch.stack([step.reward, step.success, step.terminated, step.truncated], dim=1))
        if bool(step.terminated | step.truncated):
            break
    reward, *events = torch.cat(flags).unbind(1) if flags else torch.zeros(4, 0).unbind(0)
    obs = {k: torch.cat([f[k] for f in frames]).cpu() for k in (frames[0] if frames else {})}
    return Segment(obs, reward.cpu(), *(e.cpu().bool() for e in events))


def random_frames(env: Env, episodes: int = 20) -> Obs:
    """Raw frames, key -> [n, ...], of a few episodes of uniformly random actions."""
    g, found = Generator().manual_seed(0), []
    for seed in range(0, episodes, env.num_envs):
        found.append(env.reset([seed + i for i in range(env.num_envs)]))
        for _ in range(env.max_steps):
            found.append(env.step(random_actions(env.num_actions, (env.num_envs, env.action_dim), g)).obs)
    return {k: torch.cat([f[k] for f in found]).cpu() for k in found[0]}


def random_actions(num_actions: int, size: tuple[int, ...], g: Generator) -> Tensor:
    """Uniform raw actions, discrete (`num_actions` > 0) or in [-1, 1]."""
    u = torch.rand(size, generator=g, device=g.device)
    return (u * num_actions).floor() if num_actions else 2 * u - 1


class Walk(Protocol):
    """A way to an environment; one job at a time."""

    def send(self, job: Job) -> None: ...

    def receive(self) -> Segment:
        """The result of the job sent last. Waits for it."""

    def close(self) -> None: ...


class LocalWalk:
    """An environment in this process; opened when it is first used."""

    def __init__(self, open_env: Callable[[], Env]):
        self._open, self._done = open_env, list[Segment]()
        self._env: Env | None = None

    def send(self, job: Job) -> None:
        self._env = self._env or self._open()
        self._done.append(execute(self._env, job))

    def receive(self) -> Segment:
        return self._done.pop()

    def close(self) -> None:
        if self._env:
            self._env.close()


class _Life:
    """One member's episodes: finished ones in its replay buffer, and the running one."""

    def __init__(self, walk: Walk, replay: Replay):
        self.walk, self.replay = walk, replay
        self.steps = 0
        self.outcomes: list[tuple[float, float]] = []  # success, return of each finished episode
        self.seed = -1  # of the running episode
        self.parts: list[Segment] = []  # of it, so far; the first begins with the reset's frame
        self.actions: list[Tensor] = []  # raw [n, A] of each job after the reset, one more than parts while one is out

    def window(self, length: int) -> Window:
        """The last frames, [1, ...] each; before the episode's start its first one."""
        obs = {k: torch.cat([p.obs[k] for p in self.parts[-length - 1 :]]) for k in self.parts[0].obs}
        return {k: [v[max(0, len(v) - length + i)][None] for i in range(length)] for k, v in obs.items()}

    def start(self, seed: int) -> None:
        self.seed, self.actions = seed, []
        self.walk.send(Job(seed, torch.zeros(0, self.replay.spec.action_dim)))
        self.parts = [self.walk.receive()]

    def send(self, chunk: Tensor) -> None:
        self.actions.append(chunk)
        self.walk.send(Job(None, chunk))

    def absorb(self) -> None:
        """Take what the environment has done; a finished episode goes into the buffer."""
        part = self.walk.receive()
        self.parts.append(part)
        self.actions[-1] = self.actions[-1][: len(part.reward)]
        self.steps += len(part.reward)
        if part.terminated[-1] or part.truncated[-1]:
            self._finish()

    def _finish(self) -> None:
        def joined(name: str) -> np.ndarray:
            return torch.cat([getattr(p, name) for p in self.parts]).numpy()

        obs = {k: torch.cat([p.obs[k] for p in self.parts]).numpy() for k in self.parts[0].obs}
        flags = {k: joined(k) for k in ("reward", "success", "terminated", "truncated")}
        episode = Episode(name="online", obs=obs, action=torch.cat(self.actions).numpy(), **flags)
        self.replay.add(episode)
        self.outcomes.append((float(episode.success.any()), float(episode.reward.sum())))
        self.seed, self.parts, self.actions = -1, [], []

    def pack(self) -> State:
        counts = torch.tensor([self.seed, self.steps, len(self.actions[-1]) if self.actions else 0])
        actions = torch.cat(self.actions) if self.actions else torch.zeros(0, self.replay.spec.action_dim)
        outcomes = torch.tensor(self.outcomes, dtype=torch.float64).view(-1, 2)
        return {"counts": counts, "actions": actions, "outcomes": outcomes, "replay": self.replay.pack()}

    def unpack(self, saved: State) -> None:
        """Play the running episode again, up to the job that was out when the run was saved."""
        self.seed, self.steps, out = saved["counts"].tolist()
        self.outcomes = [(s, r) for s, r in saved["outcomes"].tolist()]
        self.replay.unpack(saved["replay"])
        if self.seed < 0:
            return
        done = len(saved["actions"]) - out
        self.walk.send(Job(self.seed, saved["actions"][:done]))
        self.parts, self.actions = [self.walk.receive()], [saved["actions"][:done]]
        self.send(saved["actions"][done:])


class Online:
    """The `Source` of a run that acts: `demo_ratio` of each batch from the files, the rest from its own experience."""

    def __init__(self, cfg: RunConfig, alg: Algorithm, demos: Dataset, walks: Sequence[Walk]):
        assert cfg.online is not None
        assert alg.explore_noise is not None
        self.alg, self.spec, self.explore_noise = alg, demos.spec, alg.explore_noise
        self.demos, self.start_steps = demos, cfg.online.start_steps
        self.ratio = cfg.online.demo_ratio if len(demos) else 0.0
        self.lives = [_Life(w, Replay(demos.spec, cfg.env.control_mode, cfg.train.device)) for w in walks]

    def sample(self, generators: Sequence[Generator], batch_size: int, state: State) -> Batch:
        """Let every member act once, after its random beginning, and draw its batch."""
        everyone = range(len(self.lives))
        while beginners := [i for i in everyone if self.lives[i].steps < self.start_steps]:
            self._act(beginners, generators, state)
        self._act(everyone, generators, state)
        return stack([self._draw(life, g, batch_size) for life, g in zip(self.lives, generators, strict=True)])

    def _act(self, members: Sequence[int], generators: Sequence[Generator], state: State) -> None:
        """One chunk more for each of these members, all of them at once."""
        for i in members:
            if self.lives[i].actions:
                self.lives[i].absorb()
        for i in members:
            life, g = self.lives[i], generators[i]
            if not life.parts:
                life.start(int(torch.randint(SEEDS, (), generator=g, device=g.device)))
            life.send(self._chunk(life, g, state, i))

    def _chunk(self, life: _Life, g: Generator, state: State, member: int) -> Tensor:
        """Raw actions [H, A]: random at the beginning, then the exploring policy's."""
        s = self.spec
        if life.steps < self.start_steps:
            return random_actions(s.num_actions, (s.act_horizon, s.action_dim), g).cpu()
        policy = Policy(self.alg, s, select(state, member))
        window = {k: [f.to(g.device) for f in frames] for k, frames in life.window(s.obs_horizon).items()}
        with torch.no_grad():
            return policy.act(window, self.explore_noise(g, 1))[0].cpu()

    def _draw(self, life: _Life, g: Generator, size: int) -> Batch:
        """Chunks in an order that gives every stretch of them, so every minibatch, the same share of demonstrations."""
        i = torch.arange(size + 1)
        from_demos = ((i * self.ratio).floor().diff() > 0).to(g.device)
        number = int(from_demos.sum())
        own = life.replay.batch(life.replay.draw(g, size - number))
        if not number:
            return own
        prior = self.demos.batch(self.demos.draw(g, number))
        place = torch.cat([from_demos.nonzero()[:, 0], (~from_demos).nonzero()[:, 0]]).argsort()
        return tree_map(lambda a, b: torch.cat([a, b])[place], prior, own)

    def metrics(self) -> Metrics:
        recent = torch.stack([torch.tensor(x.outcomes[-RECENT:] or [(0.0, 0.0)]).mean(0) for x in self.lives])
        return {
            "online_env_steps": torch.tensor([float(x.steps) for x in self.lives]),
            "online_episodes": torch.tensor([float(len(x.outcomes)) for x in self.lives]),
            "online_success_recent": recent[:, 0],
            "online_return_recent": recent[:, 1],
        }

    def pack(self) -> State:
        return {str(i): to_device(life.pack(), "cpu") for i, life in enumerate(self.lives)}

    def unpack(self, saved: State) -> None:
        for i, life in enumerate(self.lives if saved else []):
            life.unpack(saved[str(i)])
