"""The audit of a dataset: whether it is consistent in itself, and equal to what the raw log yields.

`audit` first reads every file and block and checks them on whole columns. Then, if the raw log is available, the
naive reference computes some users from it, and each of their requests is compared: the exact history, request time,
features, targets and labels. Findings are sentences that name shard, block, user and request.

Memory: a block, some hundred bytes for each user of the dataset and of the log, and the reference of a group of users
with GROUP_ROWS raw rows together (1 to 2 GB), or of the one user who has more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from longbatch.schemas.accounting import RowAccounting
from longbatch.schemas.errors import SourceError, SpecError
from longbatch.schemas.format.dataset import Dataset
from longbatch.schemas.format.snapshot import read_snapshot
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.storage.open_store import Location, open_store
from longbatch.schemas.time import to_microseconds
from longbatch.schemas.types import ProgressCallback, no_progress
from longbatch.validation.reference.log_end import find_log_end
from longbatch.validation.reference.oracle import Reference, build_reference
from longbatch.validation.reference.raw_rows import read_rows
from longbatch.validation.reference.raw_tables import check_table
from longbatch.validation.reference.source_files import source_files
from longbatch.validation.reference.user_counts import UserCounts, count_user_rows
from longbatch.validation.rules import MALFORMED_ROW

from .comparison import Comparison, accounting_findings, compare
from .manifest_checks import file_findings, shard_findings, total_findings
from .structure import StoredUsers, StructureState, structure_findings
from .user_sampling import all_users, draw_users, group_users


@dataclass(frozen=True)
class Audit:
    """The result of an audit.

    Attributes:
        findings: What is wrong, a sentence each; empty if nothing is.
        blocks_checked: Number of blocks whose structure was checked.
        users_checked: Number of users compared with the raw log.
        requests_checked: Number of their requests.
        events_checked: Number of events of the histories of these requests.
        not_compared: Why nothing was compared with the raw log; empty if something was.
    """

    findings: list[str]
    blocks_checked: int = 0
    users_checked: int = 0
    requests_checked: int = 0
    events_checked: int = 0
    not_compared: str = ""


def audit(
    dataset: Location,
    spec: BuildSpec | None = None,
    users: int | None = 20,
    seed: int = 0,
    progress: ProgressCallback = no_progress,
) -> Audit:
    """Check a dataset's structure, and compare some of its users with the raw log.

    Half of the users are drawn uniformly and half in proportion to their events, so that long histories are among
    them. Up to `users` more are drawn from users who have requests in the log but are not in the dataset.

    Args:
        dataset: Folder or URL of the dataset.
        spec: Where the raw log is. Without it the dataset's own spec is used, and if its files no longer exist only
            the structure is checked.
        users: How many users to compare with the raw log, None for all.
        seed: Seed of the random choice of users.
        progress: Called with the progress of each stage.

    Returns:
        Findings, and counts of what was checked.

    Raises:
        DatasetError: The folder is not a dataset.
        SpecError: `spec` differs from the dataset's in more than how files are read.
        SourceError: The files of `spec` do not exist.
        DataError: The files cannot be read.

    Example:
        >>> audit("DATASET", users=100).findings  # doctest: +SKIP
        []
    """
    store = open_store(dataset)
    # Without the checks of `open_dataset`, because a missing file is a finding here.
    opened = Dataset(store, read_snapshot(store))
    raw = _check_same_content(opened, spec) if spec else opened.spec
    missing_files = _missing_files(raw)
    if spec and missing_files:
        raise missing_files
    state = StructureState()
    findings = [*shard_findings(opened.shards), *file_findings(opened, progress)]
    findings += structure_findings(opened, state, progress)
    findings += total_findings(opened, state)
    if missing_files:
        return Audit(findings, state.blocks, not_compared=str(missing_files))
    comparison = _compare_with_log(opened, raw, state.users(), users, seed, progress)
    findings += comparison.findings
    return Audit(findings, state.blocks, comparison.users, comparison.requests, comparison.events)


def _missing_files(raw: BuildSpec) -> SourceError | None:
    """Return the error that names missing files of the raw log, None if all sources have files."""
    try:
        for source in raw.sources:
            source_files(raw, source)
            if raw.sources[source].format in ("delta", "iceberg"):
                check_table(raw, source)
    except SourceError as error:
        return error
    return None


def _check_same_content(dataset: Dataset, spec: BuildSpec) -> BuildSpec:
    """Return the spec; raise SpecError if datasets built from it have other content, whatever its paths."""
    given, built = _content_keys(spec), _content_keys(dataset.spec)
    different = [key for key in built if given[key] != built[key]]
    if different:
        raise SpecError(
            f"the spec differs from the one that {dataset.location} was built from, in {', '.join(different)}. "
            "Pass a spec that differs in paths and file formats only."
        )
    return spec


def _content_keys(spec: BuildSpec) -> dict[str, Any]:
    """Return the keys of a spec that determine the content of a dataset, but not how its files are read."""
    keys = spec.model_dump(exclude=_KEYS_WITHOUT_CONTENT)
    for source in keys["sources"].values():
        for key in ("path", "format", "version", "snapshot", "separator", "quote", "columns"):
            del source[key]
    return keys


_KEYS_WITHOUT_CONTENT = {
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


def _compare_with_log(
    dataset: Dataset, raw: BuildSpec, stored: StoredUsers, users: int | None, seed: int, progress: ProgressCallback
) -> Comparison:
    """Compare users with the raw log group by group; if one group has all users, compare the row counts too."""
    total_rows = sum(accounting.rows for accounting in dataset.snapshot.row_accounting.values())
    advance = _counter(progress, "raw users", total_rows)
    counts = {source: count_user_rows(raw, source, advance) for source in raw.sources}
    until = dataset.snapshot.until
    log_end = find_log_end(raw) if until is None else _appended_log_end(raw, until)
    log_users = counts[raw.requests.source]
    chosen = all_users(stored, counts) if users is None else draw_users(stored, log_users, users, seed)
    groups = group_users(chosen, counts)
    is_complete = users is None and len(groups) == 1
    comparison = Comparison([*_log_end_findings(dataset, log_end)])
    # Each group reads the raw log up to twice: once for the request ids of its users, once for the rows.
    advance_rows = _counter(progress, "raw log", 2 * total_rows * len(groups))
    advance_shards = _counter(progress, "comparison", len(dataset.shards) * len(groups))
    for group in groups:
        group_ids = None if is_complete else set(group.tolist())
        reference = _requests_before(_reference_of(raw, group_ids, counts, log_end, advance_rows), until)
        comparison += compare(dataset, reference, group_ids, advance_shards)
        if is_complete and until is None:  # the row counts of appended days do not add up to those of the whole log
            comparison += Comparison([*accounting_findings(dataset, reference)])
    for stage in ("raw users", "raw log", "comparison"):
        progress(stage, 1, 1)
    return comparison


def _counter(progress: ProgressCallback, stage: str, total: int) -> Callable[[int], None]:
    """Return a function that adds to a stage's progress, up to its estimated total."""
    done = 0

    def advance(amount: int) -> None:
        nonlocal done
        done = min(done + amount, total)
        progress(stage, done, total)

    progress(stage, 0, total)
    return advance


def _appended_log_end(raw: BuildSpec, until: int) -> int | None:
    """Return up to when the actions are complete in a dataset whose log was appended up to `until`; microseconds."""
    if raw.actions is None:
        return None
    return until if raw.actions.until is None else min(until, to_microseconds(raw.actions.until))


def _requests_before(reference: Reference, until: int | None) -> Reference:
    """Leave out requests from `until` on; what became known later is in no history of the others."""
    if until is None:
        return reference
    return replace(reference, requests=[request for request in reference.requests if request.request_time < until])


def _log_end_findings(dataset: Dataset, log_end: int | None) -> Iterator[str]:
    listed = dataset.snapshot.log_end
    if listed != log_end:
        yield (
            f"the snapshot lists {listed} us as the end of the actions, but it is {log_end} us according to the raw log"
        )


def _reference_of(
    raw: BuildSpec, users: set[int] | None, counts: UserCounts, log_end: int | None, advance: Callable[[int], None]
) -> Reference:
    """Compute the reference of some users (None: all) from their raw rows, and count malformed lines as rejected."""
    chunks = {source: read_rows(raw, source, users, counts[source], advance) for source in raw.sources}
    reference = build_reference(raw, {source: chunk.frame for source, chunk in chunks.items()}, users, log_end)
    row_accounting = dict(reference.row_accounting)
    for source, chunk in chunks.items():
        if chunk.malformed:
            lines = chunk.malformed
            row_accounting[source] += RowAccounting(rows=lines, rejected=lines, reasons={MALFORMED_ROW: lines})
    return replace(reference, row_accounting=row_accounting)
