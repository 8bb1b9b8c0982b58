"""Puts functions and methods in the place of a package's own, and gives its own back."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable, Iterable
from types import ModuleType, TracebackType
from typing import Any, NamedTuple


class Replacement(NamedTuple):
    """What stands where ``owner.name`` stood: in a class, or in a module and all of its package that took it over."""

    owner: Any
    name: str
    ours: Any


class Enabled:
    """What enabling returns: leaving it as a context manager disables again, unless it was enabled before."""

    def __init__(self, exchange: Exchange, was_enabled: bool) -> None:
        self._exchange = exchange
        self._was_enabled = was_enabled

    def __repr__(self) -> str:
        return f"<awqpack in {self._exchange.package} {', '.join(self._exchange.versions)}; leaving it disables>"

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._was_enabled:
            self._exchange.disable()


class Exchange:
    """One package, the versions of it that are known, and what awqpack puts into them.

    Args:
        package: the distribution, as pip names it.
        versions: those whose results were compared with ours.
        modules: what the names of its modules begin with.
        replacements: imports what it needs of the package and says what is replaced.
    """

    def __init__(
        self, package: str, versions: tuple[str, ...], modules: str, replacements: Callable[[], Iterable[Replacement]]
    ) -> None:
        self.package = package
        self.versions = versions
        self._modules = modules
        self._replacements = replacements
        self._replaced: list[tuple[Replacement, Any]] = []  # with the original

    def enable(self) -> Enabled:
        """Makes the package use awqpack, until it is disabled.

        Returns:
            A context manager that undoes it; it need not be used.

        Raises:
            ImportError: the package is not installed.
            RuntimeError: its version is none of those known; nothing is changed then.
        """
        if self._replaced:
            return Enabled(self, was_enabled=True)
        self._require_known_version()
        found = [(new, vars(new.owner)[new.name]) for new in self._replacements()]
        for new, original in found:
            self._swap(new, original, new.ours)
        self._replaced = found
        return Enabled(self, was_enabled=False)

    def disable(self) -> None:
        """Gives the package its own back; without effect when awqpack is not enabled."""
        while self._replaced:
            new, original = self._replaced.pop()
            self._swap(new, new.ours, original)

    def _require_known_version(self) -> None:
        try:
            version = importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError as error:
            raise ImportError(f"awqpack.enable expects {self.package} to be installed; it is not") from error
        if version not in self.versions:
            raise RuntimeError(
                f"awqpack knows {self.package} {', '.join(self.versions)}; {version} is installed. Nothing was changed."
            )

    def _swap(self, new: Replacement, old: Any, other: Any) -> None:
        places = [new.owner]
        if isinstance(new.owner, ModuleType):
            places = [m for name, m in sys.modules.items() if name.startswith(self._modules) and m is not None]
        for place in places:
            if vars(place).get(new.name) is old:
                setattr(place, new.name, other)
