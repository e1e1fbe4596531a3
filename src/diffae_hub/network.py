"""Whether the Hugging Face Hub answers."""

from __future__ import annotations

_SECONDS = 10


def reach_hub() -> None:
    """Raises ConnectionError where the Hub does not answer: its client would try for half a minute."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=_SECONDS)
    except Exception as error:  # requests' or httpx's, by the version of the client
        raise ConnectionError(f"{constants.ENDPOINT} does not answer: {error}") from error
