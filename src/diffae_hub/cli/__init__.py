"""The command line; and what keeps libraries from saying more than it should."""

from __future__ import annotations


def silence_diffusers() -> None:
    """No progress bars and warnings of diffusers."""
    from diffusers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def silence_libraries() -> None:
    """No progress bars and warnings of other libraries."""
    import datasets

    silence_diffusers()
    datasets.disable_progress_bars()
