"""The ids that a dataset stores for users whom the caller names as the raw log does."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import polars as pl

from longbatch.pipelines.arrays.hashing import hash_string
from longbatch.schemas.errors import SpecError
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.types import Int64Array


def user_ids(spec: BuildSpec, users: Sequence[str]) -> Int64Array:
    """Convert users to ids.

    Args:
        spec: The build spec, which decides whether users are strings or integers.
        users: Users as the log names them.

    Returns:
        Distinct ids, (N,), ascending.

    Raises:
        SpecError: The dataset's users are integers and a user is not one.
    """
    if spec.requests.user_id.type == "string":
        return np.unique(hash_string(pl.Series(users, dtype=pl.String)).to_numpy())
    invalid = [user for user in users if not re.fullmatch(r"[+-]?\d+", user)]
    if invalid:
        raise SpecError(f"user {invalid[0]!r} is not an integer, but the users of this dataset are integers.")
    return np.unique(np.array([int(user) for user in users], dtype=np.int64))
