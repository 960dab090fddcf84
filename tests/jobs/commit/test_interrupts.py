"""SIGTERM raises KeyboardInterrupt within the block only, and only if the program has no handler."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from types import FrameType

import pytest

from longbatch.jobs.commit.interrupts import sigterm_as_interrupt


@pytest.fixture(autouse=True)
def _default_handler() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


def test_sigterm_raises_keyboard_interrupt_and_the_handler_is_removed() -> None:
    with pytest.raises(KeyboardInterrupt), sigterm_as_interrupt():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_nested_blocks_keep_the_handler_until_the_outer_one_ends() -> None:
    with sigterm_as_interrupt():
        with sigterm_as_interrupt():
            pass
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_handler_of_the_program_is_kept() -> None:
    received: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        received.append(number)

    signal.signal(signal.SIGTERM, handler)
    with sigterm_as_interrupt():
        signal.raise_signal(signal.SIGTERM)
    assert received == [signal.SIGTERM]


def test_other_threads_install_no_handler() -> None:
    handlers: list[object] = []

    def run() -> None:
        with sigterm_as_interrupt():
            handlers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert handlers == [signal.SIG_DFL]
