"""What ends a run because of its data, or for another reason: one line for the user, without a traceback."""

from __future__ import annotations


class TrainingError(RuntimeError):
    """The training cannot go on."""
