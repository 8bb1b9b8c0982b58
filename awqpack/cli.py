"""The `awqpack` command: its arguments. What the commands do is in demo.py and, for checkpoints, in checkpoint/."""

from __future__ import annotations

import contextlib
import difflib
import errno
import io
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import click

from . import __version__, conformance, demo
from .checkpoint import CheckpointError, report
from .checkpoint.convert import TARGETS
from .checkpoint.plan import parse_size
from .checkpoint.team import Team, team_of_environment
from .checkpoint.to_floats import FLOATS
from .layouts import FLOAT_LAYOUTS, LAYOUTS, SOURCES
from .ops.floats import FORMULAS

_SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def _close_to(word: str, words: Sequence[str]) -> str:
    """ "; did you mean gemm or gemv?", or nothing."""
    found = difflib.get_close_matches(word, words, 2, 0.5)
    return f"; did you mean {' or '.join(sorted(found))}?" if found else ""


_Callback = Callable[[click.Context, click.Parameter, Any], Any]


def _one_of(*words: str) -> _Callback:
    """Checks that a value is one of some words."""

    def check(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
        if value is None or value.lower() in words:
            return value and value.lower()
        near = _close_to(value.lower(), words)
        raise click.BadParameter(f"expects one of {', '.join(words)}; got {value!r}{near}")

    return check


def _size(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    try:
        return None if value is None else parse_size(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


class _Commands(click.Group):
    """Commands that know their near misses."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            known = ", ".join(self.commands)
            ctx.fail(f"{args[0]} is no command ({known}){_close_to(args[0], list(self.commands))}")
        return super().resolve_command(ctx, args)


_WHAT_IS_KNOWN = f"""layouts: {", ".join(LAYOUTS)}; auto-round's checkpoints are read as gemm, gptq or gptq_v2

    floats: {", ".join(FLOATS)}

    4-bit floats, which become floats alone: {", ".join(FLOAT_LAYOUTS)}"""


@click.group(
    cls=_Commands,
    context_settings=_SETTINGS,
    invoke_without_command=True,
    help=f"""4-bit weights for PyTorch (AWQ, GPTQ and others): inspect, convert, quantize and verify checkpoints.

    awqpack COMMAND --help has examples of each command.

    {_WHAT_IS_KNOWN}""",
)
@click.version_option(__version__, prog_name="awqpack", message="%(prog)s %(version)s")
@click.pass_context
def _awqpack(context: click.Context) -> int:
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
    return 0


_LAYOUT_HELP = "The layout it is in.  [default: auto, what config.json says, or else the tensors]"
_GROUP_HELP = "Columns that share a scale, -1 for a whole row, where no config.json and no shape says it."
_group_size = click.option("--group-size", type=int, metavar="N", help=_GROUP_HELP)
_resume = click.option(
    "--resume",
    is_flag=True,
    help="Keep files that an interrupted run with these arguments finished; when this one is interrupted, leave them.",
)


def _layout(flag: str) -> Callable[[Callable[..., int]], Callable[..., int]]:
    check = _one_of("auto", *SOURCES)
    return click.option(flag, "layout", callback=check, default="auto", metavar="LAYOUT", help=_LAYOUT_HELP)


@_awqpack.command("inspect", short_help="Say what a checkpoint holds.")
@click.argument("path", metavar="PATH")
@_layout("--layout")
@_group_size
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
def _inspect(path: str, layout: str, group_size: int | None, as_json: bool) -> int:
    """Says which layout a checkpoint is in, lists its quantized layers, and names what is inconsistent.

    PATH is a directory with config.json and safetensors files, one safetensors file, or the name of a model that is in
    the Hugging Face Hub's local cache. A file of awqpack.save_file is listed by its packed tensors.

    \b
    examples:
      awqpack inspect Llama-3.1-8B-AWQ
      awqpack inspect org/Llama-3.1-8B-AWQ
      awqpack inspect model.safetensors --layout gemv --group-size 64
      awqpack inspect Llama-3.1-8B-AWQ --json | jq '.layers[].group_size'

    exit status: 0 consistent, 1 something is not, 2 no AWQ checkpoint or not readable
    """
    return report.run_inspect(path, layout, group_size, as_json)


@_awqpack.command(
    "convert",
    short_help="Write a checkpoint in another layout, or in floats.",
    help=f"""Writes a 4-bit checkpoint in another layout without changing a code, a zero or a scale, or the ordinary
    model in floats that it stands for. Every other tensor, file and metadata entry is kept; config.json and the index
    are rewritten. The target appears when it is whole.

    SRC is a directory, one safetensors file, or the name of a model in the Hugging Face Hub's local cache. DST is a new
    directory, or file.

    {_WHAT_IS_KNOWN}

    \b
    examples:
      awqpack convert Llama-3.1-8B-AWQ Llama-3.1-8B-CT --to compressed-tensors
      awqpack convert Llama-3.1-8B-AWQ Llama-3.1-8B-BF16 --to bfloat16
      awqpack convert Llama-3.1-8B-AWQ out --to gemv_fast --dry-run
      awqpack convert old-gemv out --to gemm --max-shard-size 5GB --force
      awqpack convert a.safetensors b.safetensors --to gemv --group-size 128
      torchrun --nproc-per-node 8 -m awqpack convert SRC out --to gemv --resume

    Under torchrun each process writes files of its own; --max-shard-size makes more of them.

    exit status: 0 converted, 2 an error (nothing is written then), 130 interrupted, 143 terminated
    """,
)
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST")
@click.option("--to", required=True, callback=_one_of(*TARGETS), metavar="LAYOUT", help=", ".join(TARGETS))
@_layout("--from")
@_group_size
@click.option(
    "--scale-dtype",
    callback=_one_of(*FLOATS),
    metavar="DTYPE",
    help=f"Store scales in another dtype, if that holds each of them exactly: {', '.join(FLOATS)}.",
)
@click.option("--device", default="cpu", metavar="DEVICE", help="Where weights are repacked.  [default: cpu]")
@click.option(
    "--max-shard-size",
    callback=_size,
    metavar="SIZE",
    help="Cut the target into files of at most this, such as 5GB.  [default: the source's files, one for one; "
    "5GB for floats]",
)
@click.option("--dry-run", is_flag=True, help="Check everything, say what would be written.")
@click.option("--force", is_flag=True, help="Replace DST when it exists and is a checkpoint.")
@_resume
@click.pass_obj
def _convert(team: Team, /, source: str, target: str, **options: Any) -> int:
    return report.run_convert(source, target, team, **options)


@_awqpack.command(
    "quantize",
    short_help="Round a model in floats to 4 bits.",
    help=f"""Rounds the linear weights of a checkpoint in floats to the nearest 4-bit codes and writes it in a layout.
    Scales come from each group's least and largest weight alone: none is searched, and so a model is less exact than
    what AWQ and GPTQ make of it with data.

    Quantized are the linears of the text model's numbered blocks. The head, embeddings, norms, routers and gates, and
    what sees or hears, are kept; --dry-run lists both, --ignore and --include change it. Experts that share a tensor
    become layers of their own.

    layouts: {", ".join(LAYOUTS)}

    \b
    examples:
      awqpack quantize Llama-3.1-8B out --to gemm --dry-run
      awqpack quantize Llama-3.1-8B out --to compressed-tensors --symmetric
      awqpack quantize Mixtral-8x7B out --to gemm --ignore self_attn
      torchrun --nproc-per-node 8 -m awqpack quantize SRC out --to gemm --resume

    Under torchrun each process writes files of its own; --max-shard-size makes more of them.

    exit status: 0 quantized, 2 an error (nothing is written then), 130 interrupted, 143 terminated
    """,
)
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST")
@click.option("--to", required=True, callback=_one_of(*LAYOUTS), metavar="LAYOUT", help=", ".join(LAYOUTS))
@click.option(
    "--group-size", type=int, default=128, metavar="N", help="Columns that share a scale; -1 is all.  [default: 128]"
)
@click.option("--symmetric", is_flag=True, help="Every zero is 8.")
@click.option(
    "--formula",
    callback=_one_of(*FORMULAS),
    metavar="NAME",
    help=f"Of scales and zeros: {', '.join(FORMULAS)}.  [default: that of the layout's own tools]",
)
@click.option("--ignore", multiple=True, metavar="PATTERN", help="Keep modules: a name, parts of one, or re:PATTERN.")
@click.option("--include", multiple=True, metavar="PATTERN", help="Quantize modules that would be kept, likewise.")
@click.option(
    "--scale-dtype",
    callback=_one_of(*FLOATS),
    metavar="DTYPE",
    help="Of the scales.  [default: that of the weights; float16 for float32]",
)
@click.option(
    "--max-shard-size",
    callback=_size,
    metavar="SIZE",
    help="Cut the target into files of at most this, such as 5GB.  [default: the source's files, one for one]",
)
@click.option("--dry-run", is_flag=True, help="Say what would be quantized, and what kept.")
@click.option("--force", is_flag=True, help="Replace DST when it exists and is a checkpoint.")
@_resume
@click.pass_obj
def _quantize(team: Team, /, source: str, target: str, **options: Any) -> int:
    return report.run_quantize(source, target, team, **options)


@_awqpack.command("verify", short_help="Compare two checkpoints.")
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
def _verify(first: str, second: str, as_json: bool) -> int:
    """Decodes two checkpoints, in whatever layouts, and compares codes, zeros, scales, biases, every other tensor and
    every other file. Prints the first difference of each layer, tensor or file.

    \b
    examples:
      awqpack verify Llama-3.1-8B-AWQ Llama-3.1-8B-CT
      awqpack verify Llama-3.1-8B-AWQ Llama-3.1-8B-CT --json | jq .is_equal

    exit status: 0 equal, 1 different, 2 one of them cannot be read
    """
    return report.run_verify(first, second, as_json)


@_awqpack.command("conformance", short_help="Check somebody's unpacker, or packer.")
@click.argument("function", metavar="MODULE:FUNCTION")
@click.option("--packing", required=True, callback=_one_of(*conformance.NAMES), help=", ".join(conformance.NAMES) + ".")
@click.option("--packs", is_flag=True, help="The function packs: it takes codes and returns the payload.")
def _conformance(function: str, packing: str, packs: bool) -> int:
    """Calls a function with payloads, int32 or int16 tensors, and compares what it returns with the codes (N, K) that
    they hold. Names the first that differs, and the packing that the function takes it for. What AutoAWQ's gemm stores
    is v1_reorder of the transposed weight.

    \b
    examples:
      awqpack conformance mylib.awq:unpack --packing v1_reorder
      awqpack conformance mylib.awq:pack --packs --packing v2

    exit status: 0 the same, 1 different, 2 no such function
    """
    return conformance.run(function, packing, packs)


@_awqpack.command(
    "demo",
    short_help="Pack a model's linear weights in every packing, save, read back, compare.",
    help=f"""{" ".join((demo.__doc__ or "").split())}

    Without FILE.safetensors the model is the one of the package {demo.MODEL_PACKAGE}. What --output keeps is read by
    awqpack.load_file, and listed by awqpack inspect.

    \b
    examples:
      awqpack demo
      awqpack demo model.safetensors --output packed.safetensors

    exit status: 0 every code came back, 1 one did not, 2 an error
    """,
)
@click.argument("model", required=False, metavar="[FILE.safetensors]")
@click.option("--output", metavar="FILE", help="Keep the packed weights in FILE.  [default: a temporary file]")
def _demo(model: str | None, output: str | None) -> int:
    return demo.run(Path(model) if model else None, Path(output) if output else None)


class _Terminated(BaseException):
    """SIGTERM: what is half written is removed on the way out, as after Ctrl-C."""


def _terminate(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second one would end what removes the half written
    raise _Terminated


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status: 0 fine, 1 a mismatch, 2 bad usage or input, 130 interrupted, 143
    terminated."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = next((word for word in arguments if word in _awqpack.commands), None)
    label = "awqpack" if command is None else f"awqpack {command}"
    team = Team()
    with _surroundings():
        try:
            try:
                if command in ("convert", "quantize"):
                    team = team_of_environment()
                status = _run(arguments, team)
                if sys.stdout is not None:
                    sys.stdout.flush()
                return status
            except (click.UsageError, demo.DemoError, CheckpointError, OSError) as error:
                return _fail_for(error, label, team)
        except _Terminated:  # in the middle of an error's message, too
            dead = team.dead()  # torchrun ends the other ranks then
            if dead is not None:
                _fail(label, dead, team)
            elif _may_speak(team):
                print(f"{label}: terminated", file=sys.stderr)
            return 143
        except KeyboardInterrupt:
            if _may_speak(team):
                print(f"{label}: interrupted", file=sys.stderr)
            return 130


def _fail_for(error: Exception, label: str, team: Team) -> int:
    if isinstance(error, click.UsageError):
        return _fail(label, f"{_one_line(error.format_message())} ({label} --help)", team)
    if not isinstance(error, OSError):
        return _fail(label, _one_line(str(error)), team)
    if error.errno == errno.EPIPE:  # the reader has left (`| head`)
        _discard(sys.stdout)
        return 1
    if error.filename is None:  # a full disk behind standard output
        _discard(sys.stdout)
    what = "standard output" if error.filename is None else os.fspath(error.filename)
    return _fail(label, f"{what}: {error.strerror or error}", team)


def _run(arguments: list[str], team: Team) -> int:
    try:
        with _awqpack.make_context("awqpack", arguments, obj=team) as context:
            context.color = False if os.environ.get("NO_COLOR") else None
            status: int = _awqpack.invoke(context)
            return status
    except click.exceptions.Exit as ended:  # --help, --version
        return ended.exit_code


def _one_line(text: str) -> str:
    return " ".join(text.split("\n")).removesuffix(".")


def _may_speak(team: Team) -> bool:
    """Whether this process says how it ended. Others end meanwhile, for which torchrun terminates it: not before."""
    if team.count > 1 and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return team.may_speak()


def _fail(label: str, text: str, team: Team) -> int:
    if not _may_speak(team):
        return 2
    color = False if os.environ.get("NO_COLOR") else None
    click.echo(f"{label}: {click.style('error:', fg='red')} {text}", err=True, color=color)
    return 2


def _discard(stream: Any) -> None:
    """What is still in a stream's buffer goes nowhere: the interpreter must not try again to write it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextlib.contextmanager
def _surroundings() -> Iterator[None]:
    """Limits, signals and streams as the commands want them."""
    _open_standard_streams()
    # a checkpoint may have more files than the soft limit lets a process open
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    is_main = threading.current_thread() is threading.main_thread()
    is_default = is_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if is_default:
        signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        if is_default:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _open_standard_streams() -> None:
    """Gives streams that the caller closed to nobody, or a file that is written would get their numbers."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            with contextlib.suppress(OSError):
                os.fstat(number)
                continue
            if (fd := os.open(os.devnull, os.O_RDWR)) != number:
                os.dup2(fd, number)
                os.close(fd)
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))
        elif isinstance(stream, io.TextIOWrapper) and number > 0:
            stream.reconfigure(errors="backslashreplace")
