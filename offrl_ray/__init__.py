"""Find out which offline-RL variant works on robot data, and why the others fail."""

__version__ = "0.1.0"
