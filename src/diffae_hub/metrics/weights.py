"""Pretrained weights of metrics: what happens where they cannot be had."""

from __future__ import annotations

import io
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

_SECONDS = 30.0


class WeightsUnavailable(OSError):
    """The pretrained weights of a metric cannot be had; the message says of what and why, in one line."""


@contextmanager
def fetching_weights(of: str) -> Iterator[None]:
    """For the lines that download or load pretrained weights `of` a network, and no others: quiet, bounded in time.

    Whatever goes wrong in there (no network, a refused or broken download, a file that is missing, damaged or of
    another architecture) becomes `WeightsUnavailable`. Waiting for a server ends after 30 seconds without an answer.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SECONDS)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")  # lpips passes arguments that torchvision has renamed
            yield
    except Exception as error:  # urllib's, requests', transformers', torch's, safetensors' ...
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise WeightsUnavailable(f"the weights of {of} cannot be had: {reason}") from error
    finally:
        socket.setdefaulttimeout(before)
