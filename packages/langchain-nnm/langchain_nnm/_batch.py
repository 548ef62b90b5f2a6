"""The calls of one batch meet here, so that they are answered together and not one after the other.

LangChain runs a batch as calls side by side, each with its own callbacks, cache and config. That stays so: each call
gets a seat. One that has to ask the engine leaves its question and waits; one that need not (its answer is cached, it
is streamed, it failed) leaves its seat. When nobody is missing any more, all questions are answered in one go.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any

from nnm_core import Answer, NNMError

if TYPE_CHECKING:
    from nnm_core import Answering

ROWS = 32
"""Calls that wait for each other at most, unless the config says `max_concurrency`."""


class Meeting:
    """So many calls of one batch.

    Args:
        nnm: the engine that they ask.
        count: how many.
        run: runs the work, here or in a thread.
    """

    def __init__(self, nnm: Any, count: int, run: Callable[[Callable[[], None]], object]) -> None:
        self.nnm = nnm
        self._run = run
        self._missing = set(range(count))
        self._came: list[tuple[Answering, Future[Answer]]] = []
        self._given_up = False
        self._lock = threading.Lock()

    @contextmanager
    def seat(self, number: int) -> Iterator[None]:
        """Within this block the call with this number may `take_seat`; behind it nobody waits for it."""
        token = _SEAT.set(Seat(self, number))
        try:
            yield
        finally:
            _SEAT.reset(token)
            self.arrived(number)

    def ask(self, number: int, answering: Answering) -> Future[Answer]:
        """Leave a question; the answer comes when nobody is missing any more."""
        future: Future[Answer] = Future()
        with self._lock:
            self._came.append((answering, future))
        self.arrived(number)
        return future

    def arrived(self, number: int) -> None:
        """Nobody has to wait for this call any more."""
        with self._lock:
            last = self._missing == {number}
            self._missing.discard(number)
        if last and self._came:
            self._run(self._answer)

    def give_up(self) -> None:
        """Nobody waits for the answers any more."""
        self._given_up = True

    def _wanted(self) -> bool:
        return not self._given_up and not all(future.cancelled() for _, future in self._came)

    def _answer(self) -> None:
        try:
            found = self._finish([answering for answering, _ in self._came])
        except NNMError:  # of one of them: each by itself, so that it is raised where it belongs
            for answering, future in self._came:
                _settle(future, partial(self._alone, answering))
        except BaseException as error:  # noqa: BLE001  # the others wait for it
            for _, future in self._came:
                _settle(future, partial(_fail, error))
        else:
            for (_, future), answer in zip(self._came, found, strict=True):
                _settle(future, partial(_same, answer))

    def _finish(self, answers: Sequence[Answering]) -> list[Answer]:
        found: list[Answer] = self.nnm.finish(answers, wanted=self._wanted)
        return found

    def _alone(self, answering: Answering) -> Answer:
        return self._finish([answering])[0]


class Seat:
    """The place of one call in its meeting; it can be taken once."""

    def __init__(self, meeting: Meeting, number: int) -> None:
        self._meeting, self._number = meeting, number
        self._free = threading.Semaphore()

    def take(self, nnm: Any) -> bool:
        """Whether it was free, and is of this engine's meeting."""
        return self._meeting.nnm is nnm and self._free.acquire(blocking=False)

    def ask(self, answering: Answering) -> Future[Answer]:
        """See `Meeting.ask`."""
        return self._meeting.ask(self._number, answering)

    def leave(self) -> None:
        """See `Meeting.arrived`."""
        self._meeting.arrived(self._number)


_SEAT: ContextVar[Seat | None] = ContextVar("nnm_seat", default=None)


def take_seat(nnm: Any) -> Seat | None:
    """The seat of the call that runs here, once; None outside of a batch that asks `nnm`."""
    seat = _SEAT.get()
    return seat if seat is not None and seat.take(nnm) else None


def parts(count: int, most: int | None) -> Iterator[slice]:
    """Slices of a batch of `count` calls, whose calls wait for each other."""
    size = max(1, most or ROWS)
    return (slice(start, start + size) for start in range(0, count, size))


def _same(answer: Answer) -> Answer:
    return answer


def _fail(error: BaseException) -> Answer:
    raise error


def _settle(future: Future[Answer], make: Callable[[], Answer]) -> None:
    """Give what `make` makes, or raises, to the one who waits, if anyone still does."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        answer = make()
    except BaseException as error:  # noqa: BLE001  # it belongs to the one who waits
        future.set_exception(error)
    else:
        future.set_result(answer)
