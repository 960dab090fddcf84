"""The position of a reader, as a few numbers of JSON: the order of batches is recomputed, never stored.

A state says which batch comes next over all ranks, in which epoch, and with which arguments requests were split into
batches. It counts batches that were yielded, not those that were prepared. What does not change the sequence of batches
is not part of it: columns, history layout, workers and ranks may change from one run to the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict, cast

from .schedule import RankAndWorker

VERSION = 1  # raise it if the same state would continue with other batches
MAX_BYTES = 1_024  # bound on the JSON of a state, at any progress: small enough for each checkpoint of each rank
JsonObject = dict[str, Any]


class WorkerState(TypedDict):
    """The position of one worker, saved by itself: how many batches it has yielded since the state's `next_batch`."""

    id: int
    num_workers: int
    world_size: int
    yielded: int


class State(TypedDict):
    """A position. next_batch is the number, over all ranks, of the first batch that was not yielded."""

    version: int
    fingerprint: str
    seed: int
    epoch: int
    next_batch: int
    batching: JsonObject
    worker: WorkerState | None


@dataclass(frozen=True)
class StateContext:
    """What a state has to fit: a dataset, and arguments.

    Args:
        fingerprint: Hash of the checksums of the dataset's files.
        seed: Seed of the order.
        batching: The arguments that split requests into batches, as JSON values.
    """

    fingerprint: str
    seed: int
    batching: JsonObject

    def state(self, epoch: int, next_batch: int, worker: WorkerState | None = None) -> State:
        """Create the state of a position.

        Args:
            epoch: Number of the epoch.
            next_batch: Number, over all ranks, of the first batch that was not yielded.
            worker: Position of one of several workers, or None if the main process counts.

        Returns:
            The state.
        """
        return {
            "version": VERSION,
            "fingerprint": self.fingerprint,
            "seed": self.seed,
            "epoch": epoch,
            "next_batch": next_batch,
            "batching": self.batching,
            "worker": worker,
        }

    def check(self, state: object) -> State:
        """Check that a state continues this dataset with these arguments.

        Args:
            state: The state, as loaded from JSON.

        Returns:
            The state.

        Raises:
            ValueError: It does not fit; the message names the field, both values, and the remedy.
        """
        checked = _check_structure(state)
        # The dataset first: with another dataset all other differences are consequences.
        _check_equal(
            "fingerprint", checked["fingerprint"], self.fingerprint, "open the dataset that the state was saved with"
        )
        _check_equal("seed", checked["seed"], self.seed, f"pass seed={checked['seed']}")
        saved = checked["batching"]
        # Names of both sides: a state of another release may have arguments that this one lacks, or the reverse.
        for name in sorted({*saved, *self.batching}):
            remedy = f"pass {name}={saved.get(name)!r}, or begin a new epoch without the state"
            _check_equal(f"batching.{name}", saved.get(name), self.batching.get(name), remedy)
        return checked


def check_next_batch(state: State, num_batches: int) -> None:
    """Check that a state's position is within its epoch.

    Args:
        state: A state that fits the dataset and its arguments.
        num_batches: Number of batches of the state's epoch.

    Raises:
        ValueError: The position is after the last batch.
    """
    if state["next_batch"] > num_batches:
        raise ValueError(
            f"state: next_batch is {state['next_batch']}, expected 0 to {num_batches}, the batches of the epoch; "
            "the state was altered, use another one"
        )


def worker_yielded(state: State, reader: RankAndWorker) -> int:
    """Return how many batches a worker has yielded since the state's `next_batch`.

    Args:
        state: A state that fits the dataset and its arguments.
        reader: The worker that continues.

    Returns:
        The number of batches; 0 for a state that the main process has counted, which fits any workers and ranks.

    Raises:
        ValueError: The state was saved by another worker, or with another number of workers or ranks.
    """
    saved = state["worker"]
    # A worker counts only its own batches. Those of the others are unknown, so the same split of steps has to continue.
    if saved is None:
        return 0
    here = {"id": reader.worker, "num_workers": reader.num_workers, "world_size": reader.world_size}
    for name, value in here.items():
        remedy = "use the saved value, or save with RequestLoader, whose states fit any number of workers and ranks"
        _check_equal(f"worker.{name}", cast(JsonObject, saved).get(name), value, remedy)
    return saved["yielded"]


def _check_structure(state: object) -> State:
    if not isinstance(state, Mapping):
        raise ValueError(
            f"state: found {type(state).__name__}, expected the dict that state_dict() returned; load that"
        )
    # Before the keys: a state of another version has other keys, and its remedy is another one.
    _check_equal("version", state.get("version"), VERSION, "use the longbatch that saved it, or begin a new epoch")
    keys = set(State.__annotations__)
    if set(state) != keys:
        unexpected = sorted(set(state) ^ keys)
        raise ValueError(
            f"state: keys {unexpected} are missing or unknown, expected {sorted(keys)}; use a state as saved"
        )
    for name in ("seed", "epoch", "next_batch"):
        # Not isinstance: True is an instance of int.
        if type(state[name]) is not int or state[name] < 0:
            raise ValueError(
                f"state: {name} is {state[name]!r}, expected an integer of at least 0; use a state as saved"
            )
    if not isinstance(state["batching"], Mapping):
        raise ValueError(f"state: batching is {state['batching']!r}, expected a dict; use a state as saved")
    return cast(State, state)


def _check_equal(name: str, found: object, expected: object, remedy: str) -> None:
    if found != expected:
        raise ValueError(f"state: {name} is {found!r}, expected {expected!r}; {remedy}")
