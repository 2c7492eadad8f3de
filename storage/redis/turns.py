"""What many requests ask in one turn of the loop: asked as one command, answered to each.

A command costs some 10 µs on both sides whatever it asks, and requests that came together ask
together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

from redis import exceptions as redis_exceptions

QuestionT = TypeVar("QuestionT")
Command = Callable[[list[QuestionT]], Awaitable[Any]]


class Turn(Generic[QuestionT]):
    """Collects questions until the loop's turn ends, at most `most`, and then asks them all.

    `command` asks them; where it names a script the server has forgotten, `in_full` asks again with
    its text. `split` makes the reply into answers, in the order of the questions; an error is
    everybody's. `when_it_ends` calls back at the end of this turn.
    """

    def __init__(
        self,
        command: Command[QuestionT],
        split: Callable[[list[QuestionT], Any], Sequence[Any]],
        *,
        in_full: Command[QuestionT] | None = None,
        most: int = 500,
        when_it_ends: Callable[[Callable[[], None]], object] | None = None,
    ) -> None:
        self._command, self._in_full, self._split = command, in_full, split
        self._most, self._when_it_ends = most, when_it_ends
        self._questions: list[QuestionT] = []
        self._futures: list[asyncio.Future[Any]] = []

    def ask(self, question: QuestionT) -> asyncio.Future[Any]:
        """The answer to this one."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        if not self._questions:
            (self._when_it_ends or loop.call_soon)(self._end)
        self._questions.append(question)
        self._futures.append(future)
        if len(self._questions) >= self._most:
            self._end()
        return future

    def _end(self) -> None:
        questions, self._questions = self._questions, []
        futures, self._futures = self._futures, []
        if questions:
            reply = asyncio.ensure_future(self._command(questions))
            reply.add_done_callback(partial(self._answer, questions, futures, self._in_full))

    def _answer(
        self,
        questions: list[QuestionT],
        futures: list[asyncio.Future[Any]],
        in_full: Command[QuestionT] | None,
        reply: asyncio.Future[Any],
    ) -> None:
        try:
            answers = self._split(questions, reply.result())
        except redis_exceptions.NoScriptError as error:
            if in_full is None:
                _fail(futures, error)
            else:
                again = asyncio.ensure_future(in_full(questions))
                again.add_done_callback(partial(self._answer, questions, futures, None))
        except (Exception, asyncio.CancelledError) as error:
            _fail(futures, error)
        else:
            for future, answer in zip(futures, answers, strict=True):
                if not future.done():
                    future.set_result(answer)


def _fail(futures: list[asyncio.Future[Any]], error: BaseException) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(error)
            # Whoever asked may have been turned away meanwhile and never look.
            future.exception()
