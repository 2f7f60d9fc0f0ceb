"""Chunks of one episode, step by step in plain Python: what offrl_ray.data.dataset must build.

`current` follows design.md section 4: the chunk starts at the newest frame t of its window. `oldest` follows the seed's
code (algorithms.md 1.1): with start = t - (H_o - 1) everything starts at the window's oldest frame.
"""

from typing import Any, NamedTuple

import numpy as np

Rows = list[np.ndarray]


class Chunk(NamedTuple):
    """As types.Batch, in raw units and without the batch axis."""

    obs: Rows
    action: Rows
    q_action: Rows
    reward: list[float]
    mask: list[float]
    terminal: float
    next_obs: Rows


def padding(last: np.ndarray, control_mode: str) -> np.ndarray:
    """No motion with the same gripper where actions are differences, the same action again where they are not."""
    if "delta_pos" not in control_mode:
        return last
    still = np.zeros_like(last)
    still[-1] = last[-1]
    return still


def chunk(episode: Any, t: int, *, h_o: int, h: int, h_p: int, anchor: str, control_mode: str) -> Chunk:
    actions, frames, length = episode.action, episode.obs["state"], len(episode.action)

    def frame(i: int) -> np.ndarray:
        return frames[min(max(i, 0), length)]

    start = t if anchor == "current" else t - (h_o - 1)
    imitated = []
    for i in range(start, start + h_p):
        imitated.append(actions[max(i, 0)] if i < length else padding(actions[length - 1], control_mode))
    first, terminal, q_action, mask = max(start, 0), False, list[np.ndarray](), list[float]()
    for i in range(first, first + h):
        alive = i < length and not terminal
        mask.append(1.0 if alive else 0.0)
        if alive:
            q_action.append(actions[i])
            terminal, last = bool(episode.terminated[i]), actions[i]
        else:
            q_action.append(padding(last, control_mode))
    after = first + int(sum(mask))  # the step after the chunk
    oldest_next = after - (h_o - 1) if anchor == "current" else after
    return Chunk(
        obs=[frame(i) for i in range(t - h_o + 1, t + 1)],
        action=imitated,
        q_action=q_action,
        reward=[float(episode.reward[i]) if i < length else 0.0 for i in range(first, first + h)],
        mask=mask,
        terminal=float(terminal),
        next_obs=[frame(i) for i in range(oldest_next, oldest_next + h_o)],
    )
