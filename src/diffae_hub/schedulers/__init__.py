"""Noise schedules and the two DDIM schedulers that walk along them."""
