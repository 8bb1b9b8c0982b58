"""Runs a target for some minutes, or on inputs that it found before."""

from __future__ import annotations

import argparse
import importlib.util
import time
from pathlib import Path

import torch

import fuzz


def main():
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("target", choices=["kernels", *fuzz.TARGETS])
    parser.add_argument("inputs", nargs="*", type=Path, help="files with inputs, to run these alone")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--unguided", action="store_true", help="without atheris where it would guide")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.target == "kernels":
        raise SystemExit(fuzz.run_kernels(60 * options.minutes, options.seed))
    if options.inputs:
        run_one = fuzz.one_input(options.target, fuzz.module_of(options.target).check)
        for path in options.inputs:
            run_one(path.read_bytes())
        print(f"{options.target}: {len(options.inputs)} inputs, nothing found")
        return
    if fuzz.TARGETS[options.target][1] and not options.unguided:
        if importlib.util.find_spec("atheris"):
            fuzz.run_guided(options.target, 60 * options.minutes, options.seed)
        print(f"{options.target}: atheris is not installed; no branches guide this run")
    begin = time.monotonic()
    cases = fuzz.run(options.target, seconds=60 * options.minutes, seed=options.seed)
    minutes = (time.monotonic() - begin) / 60
    print(f"{options.target}: {cases} cases, {minutes:.1f} minutes, seed {options.seed}, nothing found")


if __name__ == "__main__":
    main()
