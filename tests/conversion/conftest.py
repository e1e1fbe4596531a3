"""Fixtures of the conversion's tests."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def memory_growth() -> Callable[[Callable[[], object]], int]:
    """By how many bytes the process grows, at its peak, while it calls a function."""

    def status(name: str) -> int:
        return 1024 * int(re.search(rf"{name}:\s*([0-9]+) kB", Path("/proc/self/status").read_text())[1])

    def run(function: Callable[[], object]) -> int:
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        except OSError:
            pytest.skip("memory is measured on Linux only")
        before = status("VmRSS")
        function()
        return status("VmHWM") - before

    return run
