"""What a caller hears of work that takes long."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .convert import Conversion


class Progress:
    """What `convert` and `verify` tell a caller who wants to show it; this one shows nothing.

    Calls come from other threads, one at a time.
    """

    def start(self, conversion: Conversion) -> None:
        """Everything is checked and writing begins."""

    def start_comparison(self, nbytes: int) -> None:
        """Two checkpoints are open, and that many bytes of the first will be compared."""

    def advance(self, nbytes: int) -> None:
        """That many more bytes are written, or compared."""

    def finish_file(self, name: str) -> None:
        """A file is whole."""
