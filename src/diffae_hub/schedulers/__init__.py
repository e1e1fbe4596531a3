"""Noise schedules and the three schedulers that walk along them."""
