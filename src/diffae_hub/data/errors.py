"""The error that ends a run, because of its data or otherwise: one line for the user, without a traceback."""

from __future__ import annotations


class TrainingError(RuntimeError):
    """The training cannot go on."""
