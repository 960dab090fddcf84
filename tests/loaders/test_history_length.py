from __future__ import annotations

import numpy as np
import pytest

from longbatch.loaders.history_length import StochasticLength


def test_drawn_lengths_are_u_shaped_multiples_of_8_that_depend_on_the_epoch() -> None:
    sampler = StochasticLength(100, 2000, alpha=0.3, beta=0.6)
    lengths = sampler.lengths(0, 0, 5, 20_000)
    assert (lengths % 8 == 0).all()
    assert (lengths.min(), lengths.max()) == (104, 2000)
    histogram = np.histogram(lengths, bins=10)[0]
    assert histogram[0] > histogram[1:9].max() < histogram[9]
    assert abs(lengths.mean() - (100 + 1900 / 3)) < 20
    assert (lengths == sampler.lengths(0, 0, 5, 20_000)).all()
    assert (lengths != sampler.lengths(0, 1, 5, 20_000)).any()
    assert (lengths != sampler.lengths(0, 0, 6, 20_000)).any()


def test_a_range_that_cannot_be_sampled_is_an_error() -> None:
    with pytest.raises(ValueError, match="give 0 <= minimum <= maximum"):
        StochasticLength(9, 8)
    with pytest.raises(ValueError, match="there is no multiple of 8 from 9 to 15"):
        StochasticLength(9, 15)
    with pytest.raises(ValueError, match="a U shape needs both between 0 and 1"):
        StochasticLength(8, 16, alpha=1.5)
