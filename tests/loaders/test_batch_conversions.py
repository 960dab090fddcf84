from __future__ import annotations

from pathlib import Path

import pytest

from longbatch.loaders import RequestDataset
from longbatch.loaders.batch import Histories
from longbatch.schemas.errors import MachineError


@pytest.mark.parametrize("histories", ["per_request", "shared"])
def test_padded_and_nested_histories_contain_the_same_events(random_dataset: Path, histories: Histories) -> None:
    batch = next(iter(RequestDataset(random_dataset, batch_size=16, histories=histories)))
    per_request = batch.to_per_request()
    padded, mask = batch.to_padded()
    nested = batch.to_nested()
    assert mask.sum(1).tolist() == per_request.history_offsets.diff().tolist()
    assert (mask[:, 1:] >= mask[:, :-1]).all(), "padding is in front of the events"
    for name in ("item_id", "event_time", "author_id"):
        assert padded[name][mask].tolist() == per_request.history[name].tolist()
        assert (padded[name][~mask] == 0).all()
        assert nested[name].values().tolist() == per_request.history[name].tolist()
    truncated, mask = batch.to_padded(3)
    assert truncated["item_id"][mask].tolist() == per_request.newest(3).history["item_id"].tolist()
    assert batch[:0].to_padded(4)[0]["item_id"].shape == (0, 4)


def test_keyed_jagged_tensors_need_torchrec_and_integers(random_dataset: Path) -> None:
    batch = next(iter(RequestDataset(random_dataset, batch_size=4)))
    with pytest.raises(KeyError, match=r"columns \['nope'\] are not in the history"):
        batch.to_keyed_jagged(["nope"])
    with pytest.raises(ValueError, match=r"columns \['ratio'\] contain floats"):
        batch.to_keyed_jagged(["ratio"])
    try:
        import torchrec  # noqa: F401
    except ImportError:
        with pytest.raises(MachineError, match=r"install the extra longbatch\[torchrec\]"):
            batch.to_keyed_jagged()
    else:
        keyed = batch.to_keyed_jagged()
        assert keyed["item_id"].values().tolist() == batch.history["item_id"].tolist()
