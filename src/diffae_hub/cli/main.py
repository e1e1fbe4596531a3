"""The command line: `diffae-hub COMMAND`.

Each command is a module with two functions, `COMMAND_arguments` and `run_COMMAND`. Bad input ends with exit code 2 and
one line on stderr.
"""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
from collections.abc import Sequence

from .. import __version__
from .flags import with_hyphens

# Command -> one line of help. A command's module is imported when it is chosen, so that `--help` does not wait for
# torch and a missing extra concerns only the command that needs it.
_COMMANDS = {
    "reconstruct": "encode images and decode them again",
    "interpolate": "walk from one image to another",
    "evaluate": "measure a model by the paper's protocol",
    "train": "train or fine-tune a model on a data set",
    "encode": "write the latent codes of a data set",
    "convert": "turn official checkpoints into a pipeline folder",
    "export-official": "write checkpoints that the official code loads",
    "push": "upload a pipeline to the Hugging Face Hub",
    "models": "list the bundled models",
}
_DESCRIPTION = """Diffusion autoencoders: image -> latent code -> image.

First steps:
  diffae-hub reconstruct photo.jpg --output out            one 32x32 thumbnail, through the bundled model
  diffae-hub reconstruct photo.jpg --tiles 8 --output out  the photograph in tiles, 8 along its shorter side
"""


class _UsageError(Exception):
    """A command line that cannot be parsed, as the one line to print."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise _UsageError(f"{self.prog}: {message}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: Arguments without the program's name; `sys.argv[1:]` if None.

    Returns:
        The exit code: 0, or 2 for bad input.
    """
    argv = with_hyphens(list(sys.argv[1:] if argv is None else argv))
    parser = _Parser(prog="diffae-hub", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    try:
        for name, summary in _COMMANDS.items():
            command = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
            if name == next((word for word in argv if not word.startswith("-")), None):
                prefix = name.replace("-", "_")
                functions = importlib.import_module(f"diffae_hub.cli.{prefix}")
                getattr(functions, f"{prefix}_arguments")(command)
                command.set_defaults(run=getattr(functions, f"run_{prefix}"))
        arguments = parser.parse_args(argv)
        arguments.command_line = shlex.join(["diffae-hub", *argv])
        return arguments.run(arguments)
    except _UsageError as error:
        print(error, file=sys.stderr)
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("diffae_hub"):
            raise
        print(f"diffae-hub: this command needs {error.name}: pip install 'diffae_hub[train,eval]'", file=sys.stderr)
    except (ValueError, OSError) as error:
        print(f"diffae-hub: {' '.join(str(error).split())}", file=sys.stderr)
    return 2
