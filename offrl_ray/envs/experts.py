"""Scripted demonstrators: proportional control on the simulator's state, in pd_ee_delta_pose.

An expert is a generator that never ends: it reads the current state and yields the clean action, float32 [7] in
[-1, 1]: translation, rotation (world axes, 1 = 0.1 m or rad) and gripper (1 open, -1 closed). Lengths are in metres.
Every action is computed from the state it is applied in, so noise on earlier actions is corrected.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from offrl_ray.envs.maniskill import ManiSkillEnv

Expert = Callable[[ManiSkillEnv], Iterator[np.ndarray]]


class Trajectory(NamedTuple):
    """One episode of T steps."""

    obs: np.ndarray  # [T+1, D] float32
    actions: np.ndarray  # [T, A] float32, as executed
    rewards: np.ndarray  # [T] float32
    success: np.ndarray  # [T] bool
    terminated: np.ndarray  # [T] bool
    truncated: np.ndarray  # [T] bool
    env_states: dict[str, dict[str, np.ndarray]]  # actors, articulations -> name -> [T+1, ...] float32


CONTROL_MODE = "pd_ee_delta_pose"
REACH = 0.1  # metres or radians that an action of 1 asks for
DOWN = Rotation.from_rotvec([np.pi, 0, 0])  # the gripper points at the table, its fingers open along world y
OPEN, HOLD, CLOSED = 1.0, -0.6, -1.0  # HOLD lets a peg swing between the fingers


def _position(body: Any) -> np.ndarray:
    return body.pose.p[0].numpy().astype(np.float64)


def _rotation(body: Any) -> Rotation:
    return Rotation.from_quat(body.pose.q[0].numpy(), scalar_first=True)


def _clip_norm(v: np.ndarray) -> np.ndarray:
    return v / max(1.0, float(np.linalg.norm(v)))


def _toward(tcp: Any, position: np.ndarray, rotation: Rotation, gripper: float) -> np.ndarray:
    """The action that moves the tool to a pose, or as far toward it as one step reaches."""
    turn = (rotation * _rotation(tcp).inv()).as_rotvec()
    # ManiSkill scales rotations by the lower bound of the controller, -0.1 rad: the sign is turned round.
    parts = (_clip_norm((position - _position(tcp)) / REACH), _clip_norm(-turn / REACH), [gripper])
    return np.concatenate(parts).astype(np.float32)


def _far(tcp: Any, position: np.ndarray, tolerance: float) -> bool:
    return bool(np.linalg.norm(_position(tcp) - position) > tolerance)


def _approach(tcp: Any, point: Callable[[], np.ndarray], rotation: Rotation, gripper: float) -> Iterator[np.ndarray]:
    """To 0.08 above a (moving) point, then down to it."""
    for height, tolerance in ((0.08, 0.015), (0.0, 0.008)):
        while _far(tcp, target := point() + [0, 0, height], tolerance):
            yield _toward(tcp, target, rotation, gripper)


def _tilt(peg: Any) -> float:
    """Turn about world y, in radians, that makes the peg's long axis point down."""
    axis = _rotation(peg).apply([1, 0, 0])
    return float(np.arctan2(axis[0], -axis[2]))


def lift_peg_upright(env: ManiSkillEnv) -> Iterator[np.ndarray]:
    """Grip the near end, lift so that the peg hangs, turn it upright, lower it onto the table."""
    tcp, peg = env.task.agent.tcp, env.task.peg
    yield from _approach(tcp, lambda: _position(peg) - [0.1, 0, 0], DOWN, OPEN)
    grip = _position(tcp)
    for _ in range(4):
        yield _toward(tcp, grip, DOWN, HOLD)
    while _position(tcp)[2] < 0.33:
        yield _toward(tcp, np.array([grip[0], grip[1], 0.36]), DOWN, HOLD)
    top = _position(tcp)
    turned = Rotation.from_rotvec([0, 0.63, 0]) * DOWN
    while (turned * _rotation(tcp).inv()).magnitude() > 0.05:
        yield _toward(tcp, top, turned, HOLD)
    while True:
        drop = np.clip(0.1195 - _position(peg)[2], -0.05, 0.05)
        upright = Rotation.from_rotvec([0, _tilt(peg), 0]) * _rotation(tcp)
        yield _toward(tcp, _position(tcp) + [0, 0, drop], upright, HOLD)


def push_cube(env: ManiSkillEnv) -> Iterator[np.ndarray]:
    """Closed fingers behind the cube, then straight ahead; again from behind whenever the cube slips aside."""
    tcp, cube = env.task.agent.tcp, env.task.obj
    while True:
        yield from _approach(tcp, lambda: _position(cube) - [0.06, 0, 0.005], DOWN, CLOSED)
        while abs(_position(cube)[1] - _position(tcp)[1]) < 0.02 and _position(tcp)[0] < _position(cube)[0]:
            yield _toward(tcp, _position(cube) + [0.03, 0, -0.005], DOWN, CLOSED)


def pick_cube(env: ManiSkillEnv) -> Iterator[np.ndarray]:
    """Grip the cube across two of its faces and carry it to the goal; again from above whenever it is lost."""
    agent, cube, goal = env.task.agent, env.task.cube, env.task.goal_site
    tcp = agent.tcp
    while True:
        x, y, _ = _rotation(cube).apply([1, 0, 0])
        yaw = (np.arctan2(y, x) + np.pi / 4) % (np.pi / 2) - np.pi / 4  # the faces repeat every quarter turn
        aligned = Rotation.from_rotvec([0, 0, yaw]) * DOWN
        yield from _approach(tcp, lambda: _position(cube), aligned, OPEN)
        grip = _position(tcp)
        for _ in range(3):
            yield _toward(tcp, grip, aligned, CLOSED)
        while agent.is_grasping(cube)[0]:
            yield _toward(tcp, _position(tcp) + _position(goal) - _position(cube), aligned, CLOSED)


EXPERTS: dict[str, Expert] = {
    "LiftPegUpright-v1": lift_peg_upright,
    "PickCube-v1": pick_cube,
    "PushCube-v1": push_cube,
}


def demonstrate(env: ManiSkillEnv, seed: int, noise: float, rng: np.random.Generator) -> Trajectory:
    """One episode of the env's expert, up to its first success (terminated) or `env.max_steps` (truncated).

    `noise` is the standard deviation of Gaussian noise on every action dimension, the gripper's too: a slipping grip
    is part of poor data.
    """
    obs = [env.reset([seed])["state"]]
    states = [env.get_state_dict()]
    expert, actions, outcomes = EXPERTS[env.env_id](env), [], []
    done = False
    while not done:
        action = next(expert) + noise * rng.standard_normal(env.action_dim)
        actions.append(np.clip(action, -1, 1).astype(np.float32))
        step = env.step(torch.from_numpy(actions[-1])[None])
        obs.append(step.obs["state"])
        states.append(env.get_state_dict())
        outcomes.append((step.reward, step.success, step.terminated, step.truncated))
        done = bool(step.terminated | step.truncated)
    env_states = {
        kind: {name: torch.cat([s[kind][name] for s in states]).numpy() for name in bodies}
        for kind, bodies in states[0].items()
    }
    rewards, success, terminated, truncated = (torch.cat(column).numpy() for column in zip(*outcomes, strict=True))
    return Trajectory(torch.cat(obs).numpy(), np.stack(actions), rewards, success, terminated, truncated, env_states)
