"""Slow implementations from the equations; they share no code with the variants that are tested against them."""
