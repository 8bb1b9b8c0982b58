"""The `awqpack` command: its arguments. What the commands do is in demo.py and, for checkpoints, in checkpoint/."""

from __future__ import annotations

import argparse
import io
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from . import __version__, demo
from .checkpoint import CheckpointError, report
from .layouts import LAYOUTS

_LAYOUTS = ", ".join(LAYOUTS)

_INSPECT = """\
Says which AWQ layout a checkpoint is in, lists its quantized layers, and names what is inconsistent.

PATH is a directory with config.json and safetensors files, or one safetensors file.
"""
_INSPECT_EXAMPLES = """\
examples:
  awqpack inspect Llama-3.1-8B-AWQ
  awqpack inspect model.safetensors --layout gemv --group-size 64
  awqpack inspect Llama-3.1-8B-AWQ --json | jq '.layers[].group_size'

exit status: 0 consistent, 1 something is not, 2 no AWQ checkpoint or not readable
"""
_CONVERT = f"""\
Writes an AWQ checkpoint in another layout without changing a code, a zero or a scale. Every other tensor, file and
metadata entry is kept; config.json and the index are rewritten. The target appears when it is whole.

layouts: {_LAYOUTS}
"""
_CONVERT_EXAMPLES = """\
examples:
  awqpack convert Llama-3.1-8B-AWQ Llama-3.1-8B-CT --to compressed-tensors
  awqpack convert Llama-3.1-8B-AWQ out --to gemv_fast --dry-run
  awqpack convert old-gemv out --to gemm --max-shard-size 5GB --force
  awqpack convert layer.safetensors layer-fast.safetensors --to gemv_fast --group-size 128

exit status: 0 converted, 2 an error (nothing is written then), 130 interrupted, 143 terminated
"""
_VERIFY = """\
Decodes two checkpoints, in whatever layouts, and compares codes, zeros, scales, biases, every other tensor and every
other file. Prints the first difference of each layer, tensor or file.
"""
_VERIFY_EXAMPLES = """\
examples:
  awqpack verify Llama-3.1-8B-AWQ Llama-3.1-8B-CT

exit status: 0 equal, 1 different, 2 one of them cannot be read
"""


def _add_source_arguments(command: argparse.ArgumentParser, flag: str) -> None:
    command.add_argument(
        flag,
        dest="layout",
        choices=["auto", *LAYOUTS],
        default="auto",
        metavar="LAYOUT",
        help="the layout it is in (default: auto, what config.json says, or else the tensors)",
    )
    command.add_argument(
        "--group-size",
        type=int,
        metavar="N",
        help="columns that share a scale, -1 for a whole row, where no config.json and no shape says it",
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="awqpack", description="4-bit AWQ weights for PyTorch: inspect, convert and verify checkpoints."
    )
    parser.add_argument("--version", action="version", version=f"awqpack {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(
        name: str, run: Callable[[argparse.Namespace], int], summary: str, text: str, examples: str = ""
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=summary,
            description=text,
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(run=run)
        return command

    command = add("inspect", report.run_inspect, "say what a checkpoint holds", _INSPECT, _INSPECT_EXAMPLES)
    command.add_argument("path", type=Path, metavar="PATH")
    _add_source_arguments(command, "--layout")
    command.add_argument("--json", action="store_true", help="print everything as one JSON object")

    command = add("convert", report.run_convert, "write a checkpoint in another layout", _CONVERT, _CONVERT_EXAMPLES)
    command.add_argument("source", type=Path, metavar="SRC", help="a directory, or one safetensors file")
    command.add_argument("target", type=Path, metavar="DST", help="a new directory, or file")
    command.add_argument("--to", required=True, choices=list(LAYOUTS), metavar="LAYOUT", help=_LAYOUTS)
    _add_source_arguments(command, "--from")
    command.add_argument("--device", default="cpu", metavar="DEVICE", help="where weights are repacked (default: cpu)")
    command.add_argument(
        "--max-shard-size",
        metavar="SIZE",
        help="cut the target into files of at most this, such as 5GB (default: the source's files, one for one)",
    )
    command.add_argument("--dry-run", action="store_true", help="check everything, say what would be written")
    command.add_argument("--force", action="store_true", help="replace DST when it exists")

    command = add("verify", report.run_verify, "compare two checkpoints", _VERIFY, _VERIFY_EXAMPLES)
    command.add_argument("first", type=Path, metavar="A")
    command.add_argument("second", type=Path, metavar="B")

    command = add(
        "demo",
        lambda arguments: demo.run(arguments.model, arguments.output),
        "pack a model's linear weights in every layout, save them, read them back, compare",
        demo.__doc__ or "",
    )
    command.add_argument(
        "model",
        nargs="?",
        type=Path,
        metavar="FILE.safetensors",
        help=f"the model; without it, the one of the package {demo.MODEL_PACKAGE}",
    )
    command.add_argument(
        "--output", type=Path, metavar="FILE", help="keep the packed weights in FILE (default: a temporary file)"
    )
    return parser


class _Terminated(BaseException):
    """SIGTERM: what is half written is removed on the way out, as after Ctrl-C."""


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status: 0 fine, 1 a mismatch, 2 bad usage or input, 130 interrupted, 143
    terminated."""
    arguments = _parser().parse_args(argv)
    # a checkpoint may have more files than the soft limit lets a process open
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    is_main = threading.current_thread() is threading.main_thread()
    is_default = is_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if is_default:
        signal.signal(signal.SIGTERM, _terminate)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        status: int = arguments.run(arguments)
        sys.stdout.flush()
        return status
    except (demo.DemoError, CheckpointError) as error:
        print(f"awqpack {arguments.command}: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader has left (`| head`): the interpreter must not try to flush again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"awqpack {arguments.command}: error: {error}", file=sys.stderr)
        return 2
    except _Terminated:
        print(f"awqpack {arguments.command}: terminated", file=sys.stderr)
        return 143
    except KeyboardInterrupt:
        print(f"awqpack {arguments.command}: interrupted", file=sys.stderr)
        return 130
    finally:
        if is_default:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
