"""The three steps of an evaluation, one after the other."""

from __future__ import annotations

from typing import Any

from ..devices import find_device, join_processes
from .measure import check_required, measure
from .options import EvaluationOptions
from .reconstruct import reconstruct
from .report import write_report


def evaluate(options: EvaluationOptions, show_progress: bool = False, command: str | None = None) -> dict[str, Any]:
    """Evaluates a model into its folder; continues what is there.

    Sampling is shared by the processes of `accelerate launch`; the first one measures and reports.

    Args:
        options: What to evaluate and how.
        show_progress: Whether to show progress bars.
        command: How it was called, for the report.

    Returns:
        The figures of report.json. Empty in all processes but the first.

    Raises:
        ValueError: For options, data or a folder that are not allowed.
        WeightsUnavailable: If a metric of `options.require` has no weights.
    """
    state = join_processes(options.device)
    check_required(options, find_device(options.device, state))
    reconstruct(options, state, show_progress)
    if not state.is_main_process:
        return {}
    measure(options.output, show_progress)
    return write_report(options.output, command)
