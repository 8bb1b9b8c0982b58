"""Runs one suite of benchmarks, prints its tables and writes benchmarks/results/<suite>-<machine>-<date>.csv."""

from __future__ import annotations

import argparse
import importlib
import os
import sys

from . import cpus

SUITES = {
    "sizes": "pack, unpack, quantize and dequantize by size, under a copy of the same bytes",
    "beside": "other ways and packages, each beside awqpack doing the same",
    "cpu": "pack and unpack beside memory copies",
    "gpu": "the same on a GPU, other ways and packages, what a call costs the host, whole models",
    "floats": "quantize, dequantize, scales and relayout beside copies, on the CPU or a GPU",
    "host": "what a call on a packed tensor costs the host, beside optimum-quanto's class",
    "adoption": "other packages packing and saving, as they are and with awqpack enabled in them",
    "convert": "a checkpoint converted beside cp -r, and beside compressed-tensors' converter",
    "quanto": "optimum-quanto quantizing one large linear, as it is and with awqpack (needs a GPU)",
}

# What runs without a name, within minutes on two cores, with what options.
USUAL = {"sizes": [], "beside": [], "host": ["--device", "cpu", "--turns", "5"], "adoption": []}
# Suites of many threads: these are bound to CPUs.
BOUND = ("cpu", "floats", "sizes", "beside", "")
REPORTS = {
    "plot": "draws docs/assets/plots/*.svg from the newest results",
    "figures": "fills in README.md and docs from the newest results",
}


def parse(words: list[str]) -> tuple[str, list[str]]:
    """The suite, USUAL without one, and what is meant for it."""
    name = words[0] if words and not words[0].startswith("-") else ""
    if name in {"", *SUITES, *REPORTS} and not (words and words[0] in ("-h", "--help")):
        return name, words[words[:1] == [name] :]
    listed = "\n".join(f"  {suite:<9}{what}" for suite, what in (SUITES | REPORTS).items())
    asked = words[0] in ("-h", "--help")
    print(
        f"usage: python -m benchmarks [SUITE] [options]; SUITE --help lists them\n\n{__doc__} Without a name: "
        f"{', '.join(USUAL)}.\n\n{listed}"
        if asked
        else f"python -m benchmarks expects one of {', '.join(SUITES | REPORTS)}; got {name}",
        file=sys.stdout if asked else sys.stderr,
    )
    raise SystemExit(0 if asked else 2)


def measure(name: str, words: list[str]) -> None:
    """One suite: its tables, and its CSV."""
    harness = importlib.import_module(".harness", __package__)
    suite = importlib.import_module(f".{name}", __package__)
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks {name}", description=suite.__doc__)
    parser.add_argument("--machine", help="name of the machine in the results (default: its GPU or CPU)")
    parser.add_argument("--no-csv", action="store_true", help="print only")
    suite.add_options(parser)
    options = parser.parse_args(words)
    where = harness.environment(options.machine)
    print(", ".join(f"{key} {value}" for key, value in where.items() if value and key != "machine"))
    rows = suite.run(options)
    if not options.no_csv:
        print(f"\nwrote {harness.write_csv(name, where, rows)}")


def main() -> None:
    """The command."""
    name, words = parse(sys.argv[1:])
    if name in REPORTS:
        importlib.import_module(f".{name}", __package__).main(words)
        return
    os.environ.setdefault("TQDM_DISABLE", "1")  # bars of others; ours says for itself whether it is shown
    if name in BOUND and cpus.ALL:
        # Before torch is imported: two of its threads on one CPU would take twice as long.
        os.environ.setdefault("OMP_PROC_BIND", "spread")
        os.environ.setdefault("OMP_PLACES", "threads")
    if name:
        measure(name, words)
        return
    for number, suite in enumerate(USUAL, 1):
        print(f"\n--- {number} of {len(USUAL)}: {suite}: {SUITES[suite]} ---")
        measure(suite, [*words, *USUAL[suite]])


if __name__ == "__main__":
    main()
