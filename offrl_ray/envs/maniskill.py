"""ManiSkill tasks with state observations as an `Env`."""

import gc
import logging
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import cache
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offrl_ray.envs import headless
from offrl_ray.errors import UsageError, did_you_mean
from offrl_ray.types import EnvStep, Obs

OBS_MODES = ("state",)
SIM_BACKENDS = ("physx_cpu", "physx_cuda")


@cache
def load() -> bool:
    """Import ManiSkill, which registers its tasks with gymnasium; True if this machine cannot render."""
    no_renderer = headless.install()
    import mani_skill.envs

    mani_skill.logger.setLevel(logging.ERROR)
    # Every reconfiguration runs a full collection: 150 ms over the modules loaded so far, 1 ms without them.
    gc.collect()
    gc.freeze()
    return no_renderer


def _has_assets(names: Sequence[str]) -> bool:
    from mani_skill.utils import assets

    groups = [assets.expand_data_group_into_individual_data_source_ids(n) for n in names if n in assets.DATA_GROUPS]
    singles = [n for n in names if n not in assets.DATA_GROUPS]
    return all(map(assets.is_data_source_downloaded, chain(singles, *groups)))


def _problems(
    env_id: str, obs_mode: str, reward_mode: str, sim_backend: str, num_envs: int, max_steps: int
) -> Iterator[str]:
    from mani_skill.utils.registration import REGISTERED_ENVS

    reward_modes: Sequence[str] = ()
    if (task := REGISTERED_ENVS.get(env_id)) is None:
        yield (
            f"env_id must be a ManiSkill task with sim_backend {sim_backend}, but got {env_id!r}; "
            f"{did_you_mean(env_id, REGISTERED_ENVS)}; gymnasium's own environments need native"
        )
    else:
        reward_modes = task.cls.SUPPORTED_REWARD_MODES
        if not _has_assets(task.asset_download_ids):
            fetch = f"python -m mani_skill.utils.download_asset {env_id}"
            yield f"env_id {env_id!r} needs assets that are not on this machine; run {fetch}"
    for name, value, known in (
        ("obs_mode", obs_mode, OBS_MODES),
        ("reward_mode", reward_mode, reward_modes),
        ("sim_backend", sim_backend, SIM_BACKENDS),
    ):
        if known and value not in known:
            yield f"{name} must be one that {env_id} offers here, but got {value!r}; {did_you_mean(value, known)}"
    for name, number in (("num_envs", num_envs), ("max_steps", max_steps)):
        if number < 1:
            yield f"{name} must be at least 1, but got {number}"
    if sim_backend == "physx_cpu" and num_envs > 1:
        yield f"num_envs must be 1 on physx_cpu, but got {num_envs}; use physx_cuda, or one process per environment"
    if sim_backend == "physx_cuda" and not torch.cuda.is_available():
        yield "sim_backend 'physx_cuda' needs a GPU that torch sees, and there is none; use physx_cpu"


class ManiSkillEnv:
    """A ManiSkill task on one simulator; `num_envs` > 1 needs physx_cuda. Raises UsageError for bad arguments."""

    num_actions = 0

    def __init__(
        self,
        env_id: str,
        control_mode: str = "pd_ee_delta_pose",
        obs_mode: str = "state",
        reward_mode: str = "sparse",
        sim_backend: str = "physx_cpu",
        num_envs: int = 1,
        max_steps: int = 100,
    ):
        self._no_renderer = load()
        if problems := list(_problems(env_id, obs_mode, reward_mode, sim_backend, num_envs, max_steps)):
            raise UsageError(problems)
        self.env_id = env_id
        self.control_mode = control_mode
        self.obs_mode = obs_mode
        self.reward_mode = reward_mode
        self.sim_backend = sim_backend
        self.num_envs = num_envs
        self.max_steps = max_steps
        self._env = self._build()
        self.task: Any = self._env.unwrapped  # the BaseEnv, for readers of the simulator's state
        self.action_dim = self._check_actions()

    def _make(self, control_mode: str | None) -> Any:
        import gymnasium as gym

        return gym.make(
            self.env_id,
            num_envs=self.num_envs,
            obs_mode=self.obs_mode,
            control_mode=control_mode,
            reward_mode=self.reward_mode,
            sim_backend=self.sim_backend,
            render_backend="none",
            max_episode_steps=self.max_steps,
            reconfiguration_freq=0,  # `reset` decides
        )

    def _build(self) -> Any:
        try:
            return self._make(self.control_mode)
        except AssertionError:
            with closing(self._make(None)) as env:
                known = env.unwrapped.agent.supported_control_modes
            if self.control_mode in known:
                raise
            hint = did_you_mean(self.control_mode, known)
            problem = f"control_mode must be one that {self.env_id} offers, but got {self.control_mode!r}; {hint}"
        except AttributeError as err:
            if not self._no_renderer:
                raise
            problem = f"env_id {self.env_id!r} cannot be built on this machine, which has no render device ({err})"
        raise UsageError([problem])

    def _check_actions(self) -> int:
        space = self.task.single_action_space
        if space.shape is None or np.any(space.low != -1) or np.any(space.high != 1):
            self.close()
            raise UsageError(
                [f"actions must be a vector in [-1, 1], but control_mode {self.control_mode!r} has {space}"]
            )
        return int(space.shape[0])

    def reset(self, seeds: Sequence[int]) -> Obs:
        """Start one episode per environment; "state" is float32 [N, D] on the simulator's device.

        On physx_cpu the episode is bitwise a function of its seed and actions. Rebuilding the scene (20 ms) buys that:
        PhysX keeps contact bookkeeping of earlier episodes, which reorders the solver's constraints. On physx_cuda the
        start depends on the seed alone, neither on the index of the environment nor on its neighbours (one partial
        reset per environment, since ManiSkill seeds the draws of a joint one by `seeds[0]`); the physics that follow
        are not bitwise reproducible.
        """
        if len(seeds) != self.num_envs:
            raise ValueError(f"reset needs one seed per environment: {self.num_envs}, but got {len(seeds)}")
        if self.sim_backend == "physx_cpu":
            obs, _ = self._env.reset(seed=[int(seeds[0])], options={"reconfigure": True})
        else:
            for i, seed in enumerate(seeds):
                env_idx = torch.tensor([i], device=self.task.device)
                obs, _ = self._env.reset(seed=[int(seed)] * self.num_envs, options={"env_idx": env_idx})
        return {"state": obs.float()}

    def step(self, action: Tensor) -> EnvStep:
        """Apply actions [N, A], clipped to [-1, 1]. Raises ValueError for a wrong shape or a NaN."""
        if tuple(action.shape) != (self.num_envs, self.action_dim):
            raise ValueError(f"actions must be [{self.num_envs}, {self.action_dim}], but got {list(action.shape)}")
        obs, reward, terminated, truncated, info = self._env.step(action)
        success = info.get("success", torch.zeros_like(terminated))
        return EnvStep({"state": obs.float()}, reward.float(), success, terminated, truncated)

    def get_state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Simulator state: {"actors", "articulations"} -> name -> [N, ...]."""
        return self.task.get_state_dict()

    def close(self) -> None:
        """Free the simulator; the environment is of no use afterwards."""
        self._env.close()
