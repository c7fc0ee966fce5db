"""Ctrl-C is heard once, and never lost: also where Python can only report an exception."""

from __future__ import annotations

import signal
import sys
import time
import weakref
from collections.abc import Callable, Iterator

import pytest

from edge_mdeq.cli.signals import insist, stop_by_signals

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Thing:
    """What can be weakly referred to."""


class Parting:
    """What is interrupted as it goes."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.fixture(autouse=True)
def reported(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[type[BaseException]]]:
    """What was reported because it could not be raised; handlers are put back."""
    found: list[type[BaseException]] = []
    before = {number: signal.getsignal(number) for number in NUMBERS}
    monkeypatch.setattr(sys, "unraisablehook", lambda lost: found.append(lost.exc_type))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield found
    for number, handler in before.items():
        signal.signal(number, handler)


def in_a_weak_reference() -> None:
    thing = Thing()
    reference = weakref.ref(thing, lambda gone: signal.raise_signal(signal.SIGINT))
    del thing
    assert reference() is None


def in_a_finaliser() -> None:
    Parting()


def work() -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        time.sleep(0.001)


PLACES = pytest.mark.parametrize("interrupted", [in_a_weak_reference, in_a_finaliser])


def interrupted_work(interrupted: Callable[[], None]) -> None:
    interrupted()  # raises nothing: Python reports it
    work()


@PLACES
def test_python_alone_goes_on(
    interrupted: Callable[[], None], reported: list[type[BaseException]]
) -> None:
    interrupted()
    assert reported == [KeyboardInterrupt]


@PLACES
def test_it_comes_again_where_it_can_be_raised(
    interrupted: Callable[[], None], reported: list[type[BaseException]]
) -> None:
    insist()
    with pytest.raises(KeyboardInterrupt):
        interrupted_work(interrupted)
    assert reported == []
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


@PLACES
def test_so_it_does_where_only_the_first_one_counts(interrupted: Callable[[], None]) -> None:
    stop_by_signals()
    for _ in range(2):
        insist()
    with pytest.raises(KeyboardInterrupt):
        interrupted_work(interrupted)
    assert {signal.getsignal(number) for number in NUMBERS} == {signal.SIG_IGN}


def test_other_exceptions_are_reported_as_ever(reported: list[type[BaseException]]) -> None:
    insist()
    thing = Thing()
    reference = weakref.ref(thing, lambda gone: 1 / 0)
    del thing
    assert reference() is None
    assert reported == [ZeroDivisionError]
