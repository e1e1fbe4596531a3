"""The command line, and functions that silence libraries."""

from __future__ import annotations


def silence_diffusers() -> None:
    """Turns off progress bars and warnings of diffusers."""
    from diffusers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def silence_libraries() -> None:
    """Turns off progress bars and warnings of diffusers, and progress bars of datasets."""
    import datasets

    silence_diffusers()
    datasets.disable_progress_bars()
