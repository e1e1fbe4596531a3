"""Fixtures of the conversion's tests."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

# The highest memory so far. (ru_maxrss would begin with that of the parent process.)
_MEASURE = """
import re, sys
from pathlib import Path
def peak():
    return 1024 * int(re.search(r"VmHWM:\\s*([0-9]+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.fixture
def memory_growth() -> Callable[..., list[int]]:
    """Runs statements in a new process, after the first, an import; by how many bytes its peak grows with each."""
    if not Path("/proc/self/status").exists():
        pytest.skip("memory is measured on Linux only")

    def run(preparation: str, statements: list[str], *arguments: Path) -> list[int]:
        code = _MEASURE + preparation + "\n"
        for statement in statements:
            code += f"before = peak()\n{statement}\nprint(peak() - before)\n"
        command = [sys.executable, "-c", code, *map(str, arguments)]
        result = subprocess.run(command, check=True, capture_output=True, text=True)
        return [int(line) for line in result.stdout.split()]

    return run


@pytest.fixture
def file_size_limit() -> Callable[[int], AbstractContextManager[None]]:
    """Writing more than so many bytes to a file fails meanwhile, as on a full disk."""
    resource = pytest.importorskip("resource")

    @contextmanager
    def limit(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit
