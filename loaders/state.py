"""The position of a reader, as a few numbers of JSON: the order is recomputed, never stored.

A state says which batch of the whole world comes next, in which epoch, and under which arguments the batches were cut. It
counts batches that were yielded, not those that were prepared. Nothing that leaves the sequence of batches as it is belongs to it:
columns, form, workers and ranks may change from one run to the next.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

VERSION = 1
MAX_BYTES = 1_024
_KEYS = {"version", "fingerprint", "seed", "epoch", "next_batch", "batching", "worker"}
State = dict[str, Any]


def make_state(
    fingerprint: str,
    seed: int,
    epoch: int,
    next_batch: int,
    batching: Mapping[str, Any],
    worker: Mapping[str, int] | None,
) -> State:
    """A state. next_batch: the number, over the whole world, of the first batch not yielded.

    worker: of one of several workers that keep states of their own, its `id`, the `num_workers` and `world_size` it counts
    in, and how many batches it has `yielded` since `next_batch`.
    """
    return {
        "version": VERSION,
        "fingerprint": fingerprint,
        "seed": seed,
        "epoch": epoch,
        "next_batch": next_batch,
        "batching": dict(batching),
        "worker": None if worker is None else dict(worker),
    }


def check_state(state: Any, *, fingerprint: str, seed: int, batching: Mapping[str, Any], num_batches: int) -> None:
    """Raise ValueError, naming field, found, expected and remedy, unless a state continues this dataset and these arguments.

    num_batches: those of the state's epoch; only called for after all else fits, so the caller may pass -1 to skip it.
    """
    _check_shape(state)
    _check("fingerprint", state["fingerprint"], fingerprint, "open the dataset that the state was saved with")
    _check("seed", state["seed"], seed, f"pass seed={state['seed']}")
    saved = state["batching"]
    for name in sorted(set(saved) | set(batching)):
        remedy = f"pass {name}={saved.get(name)!r}, or begin a new epoch without the state"
        _check(f"batching.{name}", saved.get(name), batching.get(name), remedy)
    if 0 <= num_batches < state["next_batch"]:
        raise ValueError(
            f"state: next_batch is {state['next_batch']}, expected 0 to {num_batches}, the batches of the epoch; "
            "the state was altered, use another"
        )


def _check_shape(state: Any) -> None:
    if not isinstance(state, Mapping):
        raise ValueError(f"state: found {type(state).__name__}, expected the dict that state_dict() gave; load that")
    _check("version", state.get("version"), VERSION, "use the longbatch that saved it, or begin a new epoch")
    if set(state) != _KEYS:
        odd = sorted(set(state) ^ _KEYS)
        raise ValueError(f"state: keys {odd} are missing or unknown, expected {sorted(_KEYS)}; use a state as saved")
    for name in ("seed", "epoch", "next_batch"):
        if type(state[name]) is not int or state[name] < 0:
            raise ValueError(f"state: {name} is {state[name]!r}, expected a whole number from 0; use a state as saved")
    if not isinstance(state["batching"], Mapping):
        raise ValueError(f"state: batching is {state['batching']!r}, expected a dict; use a state as saved")


def check_worker(state: State, *, worker: int, num_workers: int, world_size: int) -> int:
    """How many batches the worker had yielded since `next_batch`; ValueError for the state of another one.

    Only a state that the main process counted can go on with other workers or ranks.
    """
    saved = state["worker"]
    if saved is None:
        return 0
    here = {"id": worker, "num_workers": num_workers, "world_size": world_size}
    for name, value in here.items():
        remedy = "keep it, or save with RequestLoader, whose states fit any number of workers and ranks"
        _check(f"worker.{name}", saved.get(name), value, remedy)
    return int(saved["yielded"])


def size_bytes(state: State) -> int:
    """Bytes of the state as JSON."""
    return len(json.dumps(state))


def _check(name: str, found: Any, expected: Any, remedy: str) -> None:
    if found != expected:
        raise ValueError(f"state: {name} is {found!r}, expected {expected!r}; {remedy}")
