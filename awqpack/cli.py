"""The `awqpack` command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from . import __version__, demo


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="awqpack", description="4-bit AWQ weights for PyTorch.")
    parser.add_argument("--version", action="version", version=f"awqpack {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    command = commands.add_parser(
        "demo",
        help="pack a model's linear weights in every layout, save them, read them back, compare",
        description=demo.__doc__,
    )
    command.add_argument(
        "model",
        nargs="?",
        type=Path,
        metavar="FILE.safetensors",
        help=f"the model; without it, the one of the package {demo.MODEL_PACKAGE}",
    )
    command.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="keep the packed weights in FILE (default: a temporary file)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status: 0 fine, 1 a mismatch, 2 bad usage or input."""
    arguments = _parser().parse_args(argv)
    try:
        status = demo.run(arguments.model, arguments.output)
        sys.stdout.flush()
        return status
    except demo.DemoError as error:
        print(f"awqpack demo: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader has left (`| head`): the interpreter must not try to flush again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
