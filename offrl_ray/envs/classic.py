"""Gymnasium's own environments as an `Env`: CartPole-v1 and its like, stepped together in one process."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offrl_ray.errors import UsageError, did_you_mean
from offrl_ray.types import EnvStep, Obs


def _problems(env_id: str, reward_mode: str, num_envs: int, max_steps: int) -> Iterator[str]:
    import gymnasium as gym

    known = [name for name, spec in gym.registry.items() if str(spec.entry_point).startswith("gymnasium.envs.")]
    if env_id not in known:
        yield (
            f"env_id must be one of gymnasium's own environments with sim_backend native, but got {env_id!r}; "
            f"{did_you_mean(env_id, known)}; a ManiSkill task needs physx_cpu or physx_cuda"
        )
    if reward_mode != "native":
        yield f"reward_mode must be native in gymnasium's own environments, but got {reward_mode!r}"
    for name, number in (("num_envs", num_envs), ("max_steps", max_steps)):
        if number < 1:
            yield f"{name} must be at least 1, but got {number}"


def _space_problems(env: Any) -> Iterator[str]:
    from gymnasium.spaces import Box, Discrete

    obs, action = env.observation_space, env.action_space
    if not (isinstance(obs, Box) and len(obs.shape) == 1):
        yield f"observations must be a vector, but {env.spec.id} has {obs}; choose another environment"
    vector = isinstance(action, Box) and len(action.shape) == 1 and action.is_bounded()
    if not (vector or isinstance(action, Discrete)):
        yield f"actions must be an index or a bounded vector, but {env.spec.id} has {action}; choose another one"


class GymEnv:
    """`num_envs` copies of an environment. Raises UsageError for bad arguments.

    An environment whose episode is over stays where it is, pays nothing and ignores its actions until the next reset.
    An episode is a success if its return, when it has ended, reaches the environment's registered `reward_threshold`
    (475 of 500 in CartPole-v1). It has not ended where `max_steps` cuts it short of its registered length: a return so
    far means nothing where every step costs. Without a threshold no episode is a success.
    """

    def __init__(self, env_id: str, reward_mode: str = "native", num_envs: int = 1, max_steps: int = 200):
        import gymnasium as gym

        if problems := list(_problems(env_id, reward_mode, num_envs, max_steps)):
            raise UsageError(problems)
        self.env_id, self.num_envs, self.max_steps = env_id, num_envs, max_steps
        try:
            self._envs = [
                gym.make(env_id, max_episode_steps=max_steps, disable_env_checker=True) for _ in range(num_envs)
            ]
        except (gym.error.Error, ImportError) as e:
            raise UsageError([f"env_id {env_id!r} cannot be built on this machine: {e}"]) from None
        if problems := list(_space_problems(self._envs[0])):
            self.close()
            raise UsageError(problems)
        space = self._envs[0].action_space
        self.num_actions = int(getattr(space, "n", 0))  # 0: continuous
        self.action_dim = 1 if self.num_actions else int(space.shape[0])
        self.obs_dim = int(self._envs[0].observation_space.shape[0])
        registered = gym.spec(env_id)
        self._threshold = np.inf if registered.reward_threshold is None else registered.reward_threshold
        self._whole = max_steps >= (registered.max_episode_steps or np.inf)

    def reset(self, seeds: Sequence[int]) -> Obs:
        """Start one episode per environment, a function of its seed and actions; "state" is float32 [N, D]."""
        if len(seeds) != self.num_envs:
            raise ValueError(f"reset needs one seed per environment: {self.num_envs}, but got {len(seeds)}")
        self._frames = [env.reset(seed=int(s))[0] for env, s in zip(self._envs, seeds, strict=True)]
        self._terminated, self._truncated = np.zeros((2, self.num_envs), bool)
        self._return = np.zeros(self.num_envs)
        return self._obs()

    def _obs(self) -> Obs:
        return {"state": torch.from_numpy(np.stack(self._frames).astype(np.float32))}

    def step(self, action: Tensor) -> EnvStep:
        """Apply actions [N, A]: one index, or a vector that is clipped to [-1, 1] and stands for the space's bounds.

        Raises ValueError for a wrong shape, a NaN, or an index that there is not.
        """
        raw = self._checked(action)
        reward = np.zeros(self.num_envs)
        for i in np.flatnonzero(~(self._terminated | self._truncated)):
            frame, reward[i], self._terminated[i], self._truncated[i], _ = self._envs[i].step(raw[i])
            self._frames[i] = frame
        self._return += reward
        ended = self._terminated | (self._truncated & self._whole)
        flags = (ended & (self._return >= self._threshold), self._terminated.copy(), self._truncated.copy())
        return EnvStep(self._obs(), torch.from_numpy(reward).float(), *map(torch.from_numpy, flags))

    def _checked(self, action: Tensor) -> Any:
        """Actions as the space wants them."""
        if tuple(action.shape) != (self.num_envs, self.action_dim):
            raise ValueError(f"actions must be [{self.num_envs}, {self.action_dim}], but got {list(action.shape)}")
        values, space = action.numpy(), self._envs[0].action_space
        if not self.num_actions:
            if not np.isfinite(values).all():
                raise ValueError("actions must be finite")
            share = (np.clip(values, -1, 1) + 1) / 2
            return (space.low + share * (space.high - space.low)).astype(space.dtype)
        if not np.isin(values, np.arange(self.num_actions)).all():
            raise ValueError(f"actions must be an index, 0 to {self.num_actions - 1}, but got {values[:, 0].tolist()}")
        return space.start + values[:, 0].astype(np.int64)

    def close(self) -> None:
        """The environments are of no use afterwards."""
        for env in self._envs:
            env.close()
