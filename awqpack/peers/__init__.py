"""Makes other packages pack, unpack and round with awqpack: their results are the same bytes, sooner.

    awqpack.enable("compressed-tensors")

or, for a while only, ``with awqpack.enable("compressed-tensors"): ...``. What a replacement does not
serve (other widths than 4 bits, odd shapes, weights that are not finite) goes to the package's own code.
"""

from __future__ import annotations

import importlib

from .exchange import Enabled, Exchange

# By the name pip gives it, the module that holds its EXCHANGE; none imports the package before it is enabled.
PEERS = {
    "auto-round": "awqpack.peers.auto_round",
    "autoawq": "awqpack.peers.autoawq",
    "compressed-tensors": "awqpack.peers.compressed_tensors",
    "gptqmodel": "awqpack.peers.gptqmodel",
    "optimum-quanto": "awqpack.quanto",
}


def exchange_of(package: str) -> Exchange:
    """What awqpack puts into a package.

    Raises:
        ValueError: awqpack has nothing for a package of this name.
    """
    name = package.lower().replace("_", "-")
    if name not in PEERS:
        raise ValueError(f"awqpack.enable expects one of {', '.join(PEERS)}; got {package!r}")
    exchange: Exchange = importlib.import_module(PEERS[name]).EXCHANGE
    return exchange


def enable(package: str) -> Enabled:
    """Makes a package pack, unpack and quantize with awqpack: the same results, bit for bit, sooner.

    Args:
        package: "auto-round", "autoawq", "compressed-tensors", "gptqmodel" or "optimum-quanto", in any case.

    Returns:
        A context manager that gives the package its own functions back; it need not be used.

    Raises:
        ValueError: another name.
        ImportError: the package is not installed.
        RuntimeError: its version is not one whose results were compared; nothing is changed then.
    """
    return exchange_of(package).enable()


def disable(package: str) -> None:
    """Gives a package its own functions back; without effect when awqpack is not enabled in it.

    Raises:
        ValueError: awqpack has nothing for a package of this name.
    """
    exchange_of(package).disable()
