"""The command line: `diffae-hub COMMAND`.

Each command is a function. Its docstring is the help, its dataclass of options has the flags, and it returns what to
print, as a JSON document and as text. Errors end here, with one line on stderr and an exit code;
`python -X dev -m diffae_hub.cli` shows the traceback instead. File names and server messages may hold control
characters, which could steer the terminal: they are replaced here, too.
"""

import argparse
import importlib
import inspect
import json
import os
import shlex
import signal
import sys
import typing
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from threading import current_thread, main_thread
from types import FrameType
from typing import Any

from .. import __version__
from ..data import TrainingError
from ..flags import add_flags, from_values, with_hyphens

# Command -> its module and one line of help. The module is imported when the command is chosen, so that `--help` does
# not wait for torch, and a missing extra only affects the commands that need it.
_COMMANDS = {
    "reconstruct": ("sampling", "encode images and decode them again"),
    "interpolate": ("sampling", "walk from one image to another"),
    "edit": ("sampling", "change an attribute of images"),
    "variations": ("sampling", "decode one code from several noises"),
    "sample": ("sampling", "make new images"),
    "neighbours": ("codes", "find the images of an encoded data set that are nearest to an image"),
    "evaluate": ("train", "measure a model by the paper's protocol"),
    "train": ("train", "train or fine-tune a model on a data set"),
    "encode": ("codes", "write the latent codes of a data set"),
    "fit-attributes": ("codes", "find attributes in latent codes, for edit"),
    "train-latent": ("train", "train a latent code model, for sample"),
    "convert": ("exchange", "turn official checkpoints into a pipeline folder"),
    "export-official": ("exchange", "write checkpoints that the official code loads"),
    "push": ("exchange", "upload a pipeline to the Hugging Face Hub"),
    "models": ("exchange", "list the bundled models"),
}
_DESCRIPTION = """Diffusion autoencoders: image -> latent code -> image.

First steps:
  diffae-hub reconstruct photo.jpg --output out            one 32x32 thumbnail, through the bundled model
  diffae-hub reconstruct photo.jpg --tiles 8 --output out  the photograph in tiles, 8 along its shorter side
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        if os.environ.get("LOCAL_RANK", "0") != "0":  # only the first process prints it
            raise SystemExit(2)
        raise ValueError(f"{message} (see {self.prog} --help)")


class _Printable:
    """A stream that replaces control characters in its text, except line ends and tabs."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        return self._stream.write(_printable(text))


def _printable(text: str) -> str:
    """Replaces control characters, and those that change the writing direction, by `?`; keeps line ends and tabs."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else "?" for letter in text)


def _interrupt(signal_number: int, frame: FrameType | None) -> None:
    """Handles Ctrl-C. Exits at once during an import such as torch's, where an exception may abort the process."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os.write(2, b"interrupted\n")
            os._exit(130)
        frame = frame.f_back
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line (`sys.argv[1:]` if None).

    The exit code is 0 for success, 1 if a training failed after it had begun, 2 for other errors, 130 after Ctrl-C, and
    143 if SIGTERM stopped a training.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the shell
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - until the process ends
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a name may hold characters that the terminal's encoding lacks
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # its warnings quote the server
    if not sys.warnoptions:  # hides warnings of libraries, such as Pillow's about a damaged file, but not ours
        warnings.simplefilter("ignore")
        warnings.filterwarnings("once", module=r"diffae_hub\.data")
        warnings.formatwarning = lambda message, *_: f"WARNING: {_printable(str(message))}\n"
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    catches_interrupts = signal.getsignal(signal.SIGINT) is signal.default_int_handler and (
        current_thread() is main_thread()
    )
    if catches_interrupts:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        with redirect_stdout(_Printable(sys.stdout)):
            _run(with_hyphens(list(sys.argv[1:] if argv is None else argv)))
        sys.stdout.flush()
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("diffae_hub"):
            raise
        message, code = f"this command needs {error.name}: pip install 'diffae_hub[train,eval,video]'", 2
    except Exception as error:
        if sys.flags.dev_mode:
            raise
        kind = "" if isinstance(error, (ValueError, OSError, TrainingError)) and str(error) else type(error).__name__
        message, code = ": ".join(filter(None, (kind, str(error)))), 1 if isinstance(error, TrainingError) else 2
        if isinstance(error, BrokenPipeError):  # the reader is gone; Python would complain again at its end
            sys.stdout = None  # type: ignore[assignment]
    finally:
        if catches_interrupts:  # a caller in the same process gets its own Ctrl-C back
            signal.signal(signal.SIGINT, signal.default_int_handler)
    message = _printable(" ".join(f"diffae-hub: {message}".split()))
    print(message if len(message) < 1000 else f"{message[:500]} ... {message[-500:]}", file=sys.stderr)
    return code


def _run(argv: list[str]) -> None:
    parser = _Parser(prog="diffae-hub", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, summary) in _COMMANDS.items():
        command = commands.add_parser(name, help=summary, formatter_class=argparse.RawDescriptionHelpFormatter)
        if name == next((word for word in argv if not word.startswith("-")), None):
            function = getattr(importlib.import_module(f"diffae_hub.cli.{module}"), name.replace("-", "_"))
            options = typing.get_type_hints(function)["options"]
            command.description = inspect.getdoc(function)
            add_flags(command, options)
            if name != "train":
                command.add_argument("--json", action="store_true", help="print one JSON document instead of text")
    arguments = parser.parse_args(argv)
    if arguments.command not in ("train", "models"):  # no progress bars and warnings of diffusers and datasets
        from diffusers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    arguments.command_line = shlex.join(["diffae-hub", *argv])
    arguments.json = getattr(arguments, "json", False)
    arguments.show_progress = sys.stderr.isatty() and not arguments.json
    if result := function(from_values(options, vars(arguments)), arguments):
        document, text = result
        print(json.dumps(document, indent=2, default=str) if arguments.json else text)
