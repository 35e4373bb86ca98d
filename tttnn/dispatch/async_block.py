"""An adapted model in an engine process, as an ``async with`` block hands it out: stream, generate, score.

Knows jobs, their frames and the dispatcher. Does not know how a model is adapted.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncGenerator, Callable, Sequence
from types import TracebackType
from typing import Any

from ..engines.pipe import Frame
from ..errors import AdaptError, ConfigError, NonFiniteLossError, RefusedError
from .dispatcher import Dispatcher
from .job import Job
from .refusals import Refused


class AsyncBlock:
    """One query's turn at an engine; made by `AsyncTrainer.adapt`, entered once."""

    def __init__(self, dispatcher: Callable[[], Dispatcher], job: Job) -> None:
        """Stand ready; nothing happens before ``async with``.

        Args:
            dispatcher: gives the trainer's, or says why it may not be used.
            job: the block's.
        """
        self._dispatcher_of = dispatcher
        self._job = job
        self._adapted: AsyncAdaptedModel | None = None

    async def __aenter__(self) -> AsyncAdaptedModel:
        """Wait for an engine and until its model is adapted.

        Raises:
            RefusedError: the query is not let in, or the engine ended.
            AdaptError: the trainer is not started or in another event loop, or the block was entered before.
            NonFiniteLossError: a loss or gradient is not finite.
            ConfigError: the mode wants experts that are not there, or no document has one of the sources.
        """
        if self._job.place is not None:
            raise AdaptError("a block must be entered once. Call adapt() again for another one.")
        dispatcher = self._dispatcher_of()
        try:
            dispatcher.submit(self._job)
            while (frame := await self._job.next())["event"] != "adapted":
                if frame["event"] == "done":
                    raise Refused(503, "draining", "the trainer is closed")
        except Refused as refused:
            raise _raised(refused) from None
        except BaseException:
            dispatcher.cancel(self._job)
            raise
        self._adapted = AsyncAdaptedModel(dispatcher, self._job, frame["report"])
        return self._adapted

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait until the weights are back; what is still being written is given up."""
        assert self._adapted is not None
        await self._adapted._end(at_once=error is not None)


class AsyncAdaptedModel:
    """The model while it is adapted to one query. Usable only inside its ``async with`` block, one call at a time."""

    def __init__(self, dispatcher: Dispatcher, job: Job, report: Frame) -> None:
        self._dispatcher = dispatcher
        self._job = job
        self.report: dict[str, Any] = report
        """What adapting did and cost, as `AdaptReport.to_dict` gives it; whole after the block."""
        self._commands = 0
        self._unfinished: int | None = None
        self._reading = False
        self._closed = False

    @property
    def queue_seconds(self) -> float:
        """Seconds that the query waited for an engine."""
        return self._job.queue_seconds

    async def stream(
        self,
        prompt: str | None = None,
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
        seed: int | None = None,
    ) -> AsyncGenerator[str]:
        """Continue a prompt, and yield the text as it settles; see `TestTimeTrainer.continued` for the arguments.

        Left before its end, as by ``break``, it ends at the next token.

        Args:
            prompt: the text before; None: the query.
            max_new_tokens: at most this many tokens.
            temperature: 0 takes the likeliest token each time.
            top_p: draws only among the likeliest tokens that hold this much probability together.
            stop: strings that end the text; they are cut off.
            seed: of the draw; None: the settings'.

        Raises:
            ValueError: an argument is not as above.
            AdaptError: the block has ended, or another call of it is being waited for.
            RefusedError: the engine ended, or the trainer is being closed.
        """
        options = {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "stop": list(stop),
            "seed": seed,
        }
        async with contextlib.aclosing(self._asked({"do": "continue", "prompt": prompt, "options": options})) as frames:
            async for frame in frames:
                if frame["event"] == "piece":
                    yield frame["text"]

    async def generate(self, prompt: str | None = None, **options: Any) -> str:
        """Return all that `stream` yields, with the same arguments."""
        async with contextlib.aclosing(self.stream(prompt, **options)) as pieces:
            return "".join([piece async for piece in pieces])

    async def bits_per_byte(self, text: str, *, context: str = "") -> float:
        """Return the bits per UTF-8 byte of a text after a context that is not counted; NaN for an empty text."""
        if not text:
            return math.nan
        said: Frame = {}
        async with contextlib.aclosing(self._asked({"do": "score", "text": text, "context": context})) as frames:
            async for frame in frames:
                said = frame
        return float(said["nats"]) / math.log(2) / int(said["bytes"])

    async def _asked(self, command: Frame) -> AsyncGenerator[Frame]:
        """Tell the engine a command, and yield what it says to it, "answered" at last."""
        if self._closed:
            raise AdaptError("an adapted model must be used inside its block, which has ended")
        if self._reading:
            raise AdaptError("calls of one block must follow each other, but another one is being waited for")
        self._interrupt()
        self._commands += 1
        number = self._unfinished = self._commands
        self._dispatcher.tell(self._job, {**command, "command": number})
        try:
            while True:
                frame = await self._next(number)
                if frame.get("command") != number:
                    continue  # of a call that was left before its end
                if frame["event"] == "wrong":
                    raise ValueError(frame["message"])
                yield frame
                if frame["event"] == "answered":
                    self._unfinished = None
                    return
        finally:
            if self._unfinished == number:
                self._interrupt()

    async def _next(self, number: int) -> Frame:
        if self._unfinished != number:
            raise AdaptError("a stream must be read to its end before another call of its block, which has ended it")
        self._reading = True
        try:
            frame = await self._job.next()
        except Refused as refused:
            self._closed = True
            raise _raised(refused) from None
        finally:
            self._reading = False
        if frame["event"] == "done":
            self._closed = True
            raise _raised(Refused(503, "draining", "the trainer is closed"))
        return frame

    def _interrupt(self) -> None:
        """Give up what is still being written or scored."""
        if self._unfinished is not None:
            self._dispatcher.tell(self._job, {"interrupt": self._unfinished})
            self._unfinished = None

    async def _end(self, *, at_once: bool) -> None:
        """End the block, and wait until the engine has put the weights back; `at_once`: whatever it is at."""
        if self._closed:
            return
        self._closed = True
        if at_once or self._unfinished is not None:
            self._dispatcher.cancel(self._job)
        else:
            self._dispatcher.tell(self._job, {"end": True})
        # What became of the engine after the block's last word is nothing to the block.
        with contextlib.suppress(Refused):
            result = await self._job.result()
            self.report = result.get("report", self.report)


def _raised(refused: Refused) -> Exception:
    """Return what a program is told where an HTTP client gets a status."""
    message = refused.message.removeprefix("tttnn.")
    if refused.code == "non_finite_loss":
        return NonFiniteLossError(message)
    if refused.status < 429:
        return ConfigError(message)
    return RefusedError(message.replace("the server", "the trainer"), refused.code, refused.retry_after)
