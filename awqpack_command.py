"""The console script, outside the package: importing that takes a second, during which Ctrl-C is caught as well."""

from __future__ import annotations

import sys


def main() -> int:
    """Runs `awqpack`; returns its exit status."""
    try:
        from awqpack.cli import main as run
    except KeyboardInterrupt:
        print("awqpack: interrupted", file=sys.stderr)
        return 130
    return run()
