"""Loading of metrics' pretrained weights, which may not be available."""

import io
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

_SECONDS = 30.0


class WeightsUnavailable(OSError):
    """The pretrained weights of a metric are not available. The message says which and why, in one line."""


@contextmanager
def fetching_weights(of: str) -> Iterator[None]:
    """Wraps the lines that download or load pretrained weights `of` a network, and no others. They print nothing.

    Any error in them (no connection, a refused or broken download, a file that is missing, damaged or of another
    architecture) becomes `WeightsUnavailable`. Waiting for a server ends after 30 seconds without an answer.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SECONDS)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")  # lpips passes arguments that torchvision has renamed
            yield
    except Exception as error:  # urllib's, requests', transformers', torch's, safetensors' ...
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise WeightsUnavailable(f"the weights of {of} cannot be loaded: {reason}") from error
    finally:
        socket.setdefaulttimeout(before)
