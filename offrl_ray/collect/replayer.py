"""One process of `replay`: ManiSkill's own replayer, its own arguments, with a renderer or without."""

import sys

import torch

from offrl_ray.envs import maniskill


def main(arguments: list[str]) -> None:
    """Writes its files beside the one that it reads."""
    torch.set_num_threads(1)
    maniskill.load()  # first: the stand-in for a missing renderer must lie where tasks look when they are built
    from mani_skill.trajectory import replay_trajectory

    replay_trajectory.main(replay_trajectory.parse_args(arguments))


if __name__ == "__main__":
    main(sys.argv[1:])
