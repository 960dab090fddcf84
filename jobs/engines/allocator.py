"""Keep freed memory in the process, because a build allocates and frees the same large arrays again and again.

The kernel fills every page with zeros that is returned to it and allocated again. On a virtual machine this took a
quarter of the time of a build.
"""

from __future__ import annotations

import os

RETAINED_MS = 10_000


def keep_freed_memory() -> None:
    """Let Polars' allocator (jemalloc) keep freed pages for some seconds, unless the user has configured it.

    Call it before Polars is imported, whose allocator reads its settings once.
    """
    os.environ.setdefault("_RJEM_MALLOC_CONF", f"dirty_decay_ms:{RETAINED_MS},muzzy_decay_ms:-1")
