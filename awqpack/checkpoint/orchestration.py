"""One conversion by one process or by several: who writes which file, what an earlier run left, and the rename."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from .carry_out import write_others, write_tensors
from .errors import CheckpointError
from .journal import Journal, boot_id
from .plan import OutputFile, Plan
from .progress import Progress
from .staging import Staging
from .team import Team


def shares(files: Sequence[OutputFile], count: int) -> list[list[OutputFile]]:
    """Files for each of several processes, in order, with about as many bytes for each."""
    dealt: list[list[OutputFile]] = [[] for _ in range(count)]
    nbytes = [0] * count
    for file in sorted(files, key=lambda file: -file.nbytes):
        least = nbytes.index(min(nbytes))
        dealt[least].append(file)
        nbytes[least] += file.nbytes
    order = {file.name: i for i, file in enumerate(files)}
    return [sorted(part, key=lambda file: order[file.name]) for part in dealt]


@dataclass(frozen=True)
class Run:
    """Who carries out a conversion.

    Attributes:
        team: the processes. The first one makes the folder, copies what is no tensor, and renames.
        identity: what the journal says that the conversion comes from.
        resume: keep files of an interrupted run that are whole.
    """

    team: Team = field(default_factory=Team)
    identity: Mapping[str, str] = field(default_factory=dict)
    resume: bool = False


class Orchestration:
    """A plan, carried out in a staging folder.

    Args:
        plan, staging, run: what, where, and by whom.
        progress: told what happens.
    """

    def __init__(self, plan: Plan, staging: Staging, run: Run, progress: Progress) -> None:
        self._plan = plan
        self._staging = staging
        self._team = run.team
        self._resume = run.resume
        self._progress = progress
        self._boots = set(self._team.exchange(boot_id()))
        self._folder = staging.folder if plan.source.is_file else staging.content
        # a conversion on one machine that is not to be resumed does not wait for its disk, as cp does not
        is_synced = run.resume or len(self._boots) > 1
        self._journal = Journal(staging.folder, self._folder, plan.files, run.identity, is_synced=is_synced)

    def run(self, others: int, start: Callable[[], None]) -> tuple[str, ...]:
        """Returns once the target is there, with the names of files that an interrupted run had written.

        Args:
            others: bytes of files that are no tensors.
            start: called when writing begins.
        """
        if self._team.rank == 0:
            with self._staging:
                kept = self._lead(others, start)
        else:
            kept = self._follow(start)
        self._team.exchange(None)
        return tuple(kept)

    def _lead(self, others: int, start: Callable[[], None]) -> list[str]:
        """What the first process does, inside the staging folder."""
        team = self._team
        kept = self._journal.kept(self._boots) if self._resume else []
        self._staging.clear(self._journal.paths(kept))
        kept_bytes = sum(file.nbytes for file in self._plan.files if file.name in kept)
        self._staging.require_space(self._plan.nbytes + others - kept_bytes)
        token = uuid.uuid4().hex
        self._journal.begin(token)
        team.exchange((token, kept))
        start()
        self._take_part(kept)
        missing = self._journal.missing(self._boots)
        if missing:
            raise CheckpointError(f"{self._staging.target}: {missing[0]} changed after it was written")
        if self._plan.source.is_file:
            (self._folder / self._plan.files[0].name).rename(self._staging.content)
        self._staging.commit()
        return kept

    def _follow(self, start: Callable[[], None]) -> list[str]:
        """What every other process does."""
        token, kept = self._team.exchange(None)[0]
        if self._journal.token != token:
            raise CheckpointError(f"{self._staging.target}: every rank needs the same folder for it; this has its own")
        start()
        self._take_part(kept)
        return list(kept)

    def _take_part(self, kept: Sequence[str]) -> None:
        """Writes this process's share, and for the first process what is no tensor; returns once all have."""
        team, progress = self._team, self._progress
        team.hold(self._staging.folder)
        if team.rank == 0:
            team.show_others(progress.advance, progress.finish_file)
        for file in self._plan.files if team.rank == 0 else ():
            if file.name in kept:
                progress.advance(file.nbytes)
                progress.finish_file(file.name)
        share = shares([file for file in self._plan.files if file.name not in kept], team.count)[team.rank]
        whole: set[str] = set()

        def advance(nbytes: int) -> None:
            team.count_own(nbytes)
            team.poll()
            progress.advance(nbytes)

        def finish(name: str) -> None:
            self._journal.record(name)
            whole.add(name)
            team.count_own(0, name)
            progress.finish_file(name)

        try:
            if team.rank == 0 and not self._plan.source.is_file:
                write_others(self._plan, self._folder)
            write_tensors(self._plan, self._folder, share, advance, finish)
        except BaseException:
            for file in share:  # no use to the next run, and space that it needs
                if file.name not in whole:
                    (self._folder / file.name).unlink(missing_ok=True)
            raise
        team.exchange(None)
