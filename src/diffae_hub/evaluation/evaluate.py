"""The three steps of an evaluation, one after the other."""

from typing import Any

from ..devices import join_processes
from .measure import check_required, measure
from .options import EvaluationOptions
from .reconstruct import reconstruct
from .report import write_report


def evaluate(options: EvaluationOptions, show_progress: bool = False, command: str | None = None) -> dict[str, Any]:
    """Evaluates a model, or continues the evaluation in the folder, and returns the content of report.json.

    The processes of `accelerate launch` share the sampling. The first one measures and reports; the others return an
    empty dictionary. `command` is the command line, for the report.
    """
    state, device = join_processes(options.device)
    check_required(options, device)
    reconstruct(options, state, device, show_progress)
    if not state.is_main_process:
        return {}
    measure(options.output, show_progress)
    return write_report(options.output, command)
