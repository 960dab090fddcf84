"""The audit of a dataset: what its files say about themselves, and what the raw log says about them.

`audit` first reads every file and block and checks them on whole columns. Then, where the raw log is at hand, the
naive reference works out some users straight from it, and every request of theirs is compared: the exact history,
request time, features, targets and labels. Findings are sentences that name shard, block, user, request.

Memory: a block, some hundred bytes for each user of the dataset and of the log, and the reference of a group of
users with GROUP_ROWS raw rows together (1 to 2 GB), or of the one user who has more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from longbatch.schemas.accounting import RowAccounting
from longbatch.schemas.errors import SourceError, SpecError
from longbatch.schemas.format.dataset import Dataset
from longbatch.schemas.format.snapshot import read_snapshot
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.types import ProgressCallback, no_progress
from longbatch.validation.reference.log_end import log_end
from longbatch.validation.reference.oracle import Reference, build_reference
from longbatch.validation.reference.raw_files import source_files
from longbatch.validation.reference.raw_rows import read_rows
from longbatch.validation.reference.user_counts import Censuses, take_census
from longbatch.validation.reference.values import microseconds
from longbatch.validation.rules import MALFORMED_ROW

from .comparison import Comparison, book_findings, compare
from .manifest_checks import file_findings, total_findings
from .structure import Seen, Users, structure_findings
from .user_sampling import draw_users, everybody, group_users


@dataclass(frozen=True)
class Audit:
    """What an audit found. All blocks are checked for structure; users, requests and the events of their
    histories count as checked where they were compared with the raw log; `not_compared` says why none were.
    """

    findings: list[str]
    blocks_checked: int = 0
    users_checked: int = 0
    requests_checked: int = 0
    events_checked: int = 0
    not_compared: str = ""


def audit(
    dataset_path: str | Path,
    spec: BuildSpec | None = None,
    users: int | None = 20,
    seed: int = 0,
    progress: ProgressCallback = no_progress,
) -> Audit:
    """Check a dataset's structure, and `users` of its users (None: all) against the raw log.

    `spec` says where the raw log is; without it the dataset's own spec does, and if its files are gone only the
    structure is checked. Half of the users are drawn evenly, half in proportion to their events, so that long
    histories are among them; to them come up to `users` users who have requests in the log but are not in the dataset.
    Raises DatasetError where there is no dataset, SpecError if `spec` means something else than the dataset's,
    SourceError if its files are not there, DataError if they cannot be read.
    """
    root = Path(dataset_path)
    dataset = Dataset(root, read_snapshot(root))
    raw = _same_meaning(dataset, spec) if spec else dataset.spec
    gone = _gone(raw)
    if spec and gone:
        raise gone
    seen = Seen()
    findings = [*file_findings(dataset, progress), *structure_findings(dataset, seen, progress)]
    findings += total_findings(dataset, seen)
    if gone:
        return Audit(findings, seen.blocks, not_compared=str(gone))
    compared = _compared(dataset, raw, seen.users(), users, seed, progress)
    findings += compared.findings
    return Audit(findings, seen.blocks, compared.users, compared.requests, compared.events)


def _gone(raw: BuildSpec) -> SourceError | None:
    """Return what says that files of the raw log are not there."""
    try:
        for source in raw.sources:
            source_files(raw, source)
    except SourceError as error:
        return error
    return None


def _same_meaning(dataset: Dataset, spec: BuildSpec) -> BuildSpec:
    """Return the spec. Raises SpecError unless it means the same as the dataset's, whatever its paths."""
    theirs, ours = _meaning(spec), _meaning(dataset.spec)
    different = [part for part in ours if theirs[part] != ours[part]]
    if different:
        raise SpecError(f"the spec is not the one {dataset.path} was built by: {different} differ; use that one")
    return spec


def _meaning(spec: BuildSpec) -> dict[str, Any]:
    """Return all of a spec that the content of a dataset depends on, but not how its files are to be read."""
    meaning = spec.model_dump(exclude=_MEANINGLESS)
    for source in meaning["sources"].values():
        for how in ("path", "format", "separator", "quote", "columns"):
            del source[how]
    return meaning


_MEANINGLESS = {
    "name",
    "compression",
    "encoding",
    "items",
    "block_events",
    "block_targets",
    "max_rejected",
    "max_rejected_for",
    "expectations",
}


# The raw log


def _compared(
    dataset: Dataset, raw: BuildSpec, stored: Users, users: int | None, seed: int, progress: ProgressCallback
) -> Comparison:
    """Compare users with the raw log, a group of them at a time; the books too where one group has all rows."""
    rows = sum(accounting.rows for accounting in dataset.snapshot.row_accounting.values())
    advance = _counter(progress, "raw users", rows)
    censuses = {source: take_census(raw, source, advance) for source in raw.sources}
    until = dataset.snapshot.until
    end = log_end(raw) if until is None else _end_of_days(raw, until)
    asked = censuses[raw.requests.source]
    chosen = everybody(stored, censuses) if users is None else draw_users(stored, asked, users, seed)
    groups = group_users(chosen, censuses)
    whole = users is None and len(groups) == 1
    read, compared = _counter(progress, "raw log", 2 * rows * len(groups)), Comparison([*_end_findings(dataset, end)])
    advance = _counter(progress, "comparison", len(dataset.shards) * len(groups))
    for group in groups:
        some = None if whole else set(group.tolist())
        reference = _until(_reference_of(raw, some, censuses, end, read), until)
        compared += compare(dataset, reference, some, advance)
        if whole and until is None:  # the books of days add up to other sums
            compared += Comparison([*book_findings(dataset, reference)])
    for stage in ("raw users", "raw log", "comparison"):
        progress(stage, 1, 1)
    return compared


def _counter(progress: ProgressCallback, stage: str, total: int) -> Callable[[int], None]:
    """Return what adds to a stage's progress; totals are estimates."""
    done = 0

    def advance(more: int) -> None:
        nonlocal done
        done = min(done + more, total)
        progress(stage, done, total)

    progress(stage, 0, total)
    return advance


def _end_of_days(raw: BuildSpec, until: int) -> int | None:
    """Up to when a dataset that holds the log until some time takes the actions to be complete."""
    if raw.actions is None:
        return None
    return until if raw.actions.until is None else min(until, microseconds(raw.actions.until))


def _until(reference: Reference, until: int | None) -> Reference:
    """Leave out requests from `until` on. What was known later is in no history of the others."""
    if until is None:
        return reference
    return replace(reference, requests=[request for request in reference.requests if request.request_time < until])


def _end_findings(dataset: Dataset, end: int | None) -> Iterator[str]:
    if dataset.snapshot.log_end != end:
        yield f"the snapshot says that the actions end at {dataset.snapshot.log_end} us, the raw log gives {end}"


def _reference_of(
    raw: BuildSpec, users: set[int] | None, censuses: Censuses, end: int | None, advance: Callable[[int], None]
) -> Reference:
    """Work out some users (None: all) from their raw rows; lines that were no rows are in its books."""
    chunks = {source: read_rows(raw, source, users, census, advance) for source, census in censuses.items()}
    reference = build_reference(raw, {source: chunk.frame for source, chunk in chunks.items()}, users, end)
    lost = {source: chunk.malformed for source, chunk in chunks.items() if chunk.malformed}
    malformed = {s: RowAccounting(rows=n, rejected=n, reasons={MALFORMED_ROW: n}) for s, n in lost.items()}
    row_accounting = {
        s: accounting + malformed.get(s, RowAccounting()) for s, accounting in reference.row_accounting.items()
    }
    return replace(reference, row_accounting=row_accounting)
