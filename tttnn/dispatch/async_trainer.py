"""AsyncTrainer: the queue and the engine processes of the server for a program of one's own, without HTTP.

Knows recipes, settings and the dispatcher. Does not know torch: models live in the engine processes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from types import TracebackType
from typing import Any, Literal, Self

from ..config import AdaptConfig, ServeConfig
from ..engines.cost import Work
from ..engines.pipe import Frame
from ..errors import AdaptError, TttnnError
from ..recipe import TrainerRecipe
from ..retrieval.where import Where, where_of
from .async_block import AsyncBlock
from .dispatcher import Dispatcher, Restart
from .job import Job


class AsyncTrainer:
    """Adapts a model to one query after the other in engine processes; many tasks of one event loop may ask at once.

    Queries wait in a line, earliest deadline first, and are refused where the line is too long. A task that is
    cancelled gives its query up: out of the line at once, else at the next training step or token; the weights are back
    before the next query begins. An engine that dies takes its own query with it and is replaced.

    Example:
        >>> recipe = TrainerRecipe("smollm2-135m", "pile-00")  # doctest: +SKIP
        >>> async with AsyncTrainer(recipe) as trainer:  # doctest: +SKIP
        ...     async with trainer.adapt("def quicksort(", deadline_ms=5000) as adapted:
        ...         async for piece in adapted.stream(max_new_tokens=64):
        ...             print(piece, end="")
    """

    def __init__(self, recipe: TrainerRecipe, config: ServeConfig | None = None) -> None:
        """Describe a trainer; `start`, or ``async with``, starts it.

        Args:
            recipe: the model, the datastore and how to adapt.
            config: how many engines, how many may wait and for how long; what is HTTP's in it is not used.
        """
        self._recipe = recipe
        self._config = ServeConfig() if config is None else config
        self._dispatcher: Dispatcher | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self) -> Self:
        """Start the engines in the running event loop, and wait until the first one has made a real step.

        Raises:
            AdaptError: it is started already.
            TttnnError: no engine can be started; the message says why.
        """
        if self._dispatcher is not None:
            raise AdaptError("the trainer must be started once, but it runs already. Close it first.")
        loads = {
            "recipe": self._recipe.to_dict(),
            "name": self._recipe.model_name,
            "verify_every": self._config.verify_every,
        }
        dispatcher = self._dispatcher = Dispatcher(loads, self._config, _Nobody())
        self._loop = asyncio.get_running_loop()
        dispatcher.start()
        waits = [asyncio.ensure_future(event.wait()) for event in (dispatcher.settled, dispatcher.failed)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        except BaseException:
            await self.close()
            raise
        finally:
            for wait in waits:
                wait.cancel()
        if dispatcher.failure is not None:
            await self.close()
            raise TttnnError(dispatcher.failure)
        return self

    async def close(self, *, timeout: float = 0.0) -> None:
        """End the engines.

        Args:
            timeout: seconds in which what waits and runs may finish; the rest is given up at its next step or token,
                and those who wait for it get a RefusedError. New queries are refused from now on.
        """
        dispatcher = self._dispatcher
        if dispatcher is None:
            return
        try:
            await dispatcher.drain(timeout)
        finally:
            await dispatcher.close()
            self._dispatcher = None

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def adapt(
        self,
        query: str,
        *,
        mode: Literal["exact", "instant", "auto"] | None = None,
        num_neighbors: int | None = None,
        context_neighbors: int | None = None,
        deadline_ms: float | None = None,
        exclude_digests: Collection[str] = (),
        sources: Collection[str] = (),
        where: Where | Mapping[str, Any] | None = None,
        salt: str = "",
        reserve_tokens: int = 0,
    ) -> AsyncBlock:
        """Return an async context manager that waits for an engine and yields its model adapted to `query`.

        The engine is the block's own until it ends; then every weight is back, bit for bit, as with
        `TestTimeTrainer.adapt`. None means: as the recipe says.

        Args:
            query: a text that is not empty.
            mode: how the model is adapted; see `AdaptConfig`.
            num_neighbors: neighbors to train on.
            context_neighbors: neighbors that are read before each text.
            deadline_ms: milliseconds from when the block is entered, waiting included. Training stops in time to write
                `reserve_tokens` and to put the weights back; streams end at it.
            exclude_digests: neighbors with such a text are left out; see `text_digest`.
            sources: of the neighbors; empty: all. Short for ``where={"source": sources}``.
            where: which documents may be neighbors; see `Where`.
            salt: states kept for `reuse` are told apart by it.
            reserve_tokens: tokens that are to be written in the block, for predictions and the deadline.

        Raises:
            ValueError: the query is empty, or a setting is not as `AdaptConfig` says.
            AdaptError: the trainer is not started, or in another event loop.
        """
        if not isinstance(query, str):
            raise TypeError(f"query must be a str, got {type(query).__name__}")
        if not query.strip():
            raise ValueError(f"query must hold some text to search with, got {query!r}")
        if reserve_tokens < 0:
            raise ValueError(f"reserve_tokens must be 0 or more, got {reserve_tokens}")
        changes = {"mode": mode, "num_neighbors": num_neighbors, "context_neighbors": context_neighbors}
        config = self._recipe.adapt.with_(**{name: value for name, value in changes.items() if value is not None})
        config.with_(deadline_ms=deadline_ms)  # refused here, where it is not a deadline
        payload: Frame = {
            "query": query,
            "mode": config.mode,
            "num_neighbors": config.num_neighbors,
            "context_neighbors": config.context_neighbors,
            "exclude_digests": list(exclude_digests),
            "where": where_of(where, sources or None).to_dict(),
            "salt": salt,
            "events": False,
            "reserve_tokens": reserve_tokens,
        }
        return AsyncBlock(self._usable, Job("block", payload, _work(config, reserve_tokens), deadline_ms=deadline_ms))

    @property
    def waiting(self) -> int:
        """How many queries wait for an engine."""
        return 0 if self._dispatcher is None else self._dispatcher.line.waiting

    @property
    def running(self) -> int:
        """How many queries have an engine: those being adapted to, and those whose block is open."""
        return 0 if self._dispatcher is None else self._dispatcher.line.running

    def _usable(self) -> Dispatcher:
        """Return the dispatcher, where it may be used from here."""
        if self._dispatcher is None:
            raise AdaptError("the trainer must be started. Use: async with AsyncTrainer(...), or await its start().")
        if asyncio.get_running_loop() is not self._loop:
            raise AdaptError(
                "the trainer must be used in the event loop that started it, got another one. Start another trainer "
                "there, or hand the work over with asyncio.run_coroutine_threadsafe()."
            )
        return self._dispatcher


def _work(config: AdaptConfig, tokens: int) -> Work:
    return Work(
        adaptations=1,
        neighbors=config.num_neighbors if config.mode == "exact" else 0,
        merges=0 if config.mode == "exact" else 1,
        context_neighbors=config.in_context if tokens else 0,
        token_limit=config.max_neighbor_tokens,
        new_tokens=tokens,
    )


class _Nobody:
    """Is told what happens, and does nothing about it: who asked hears of it in an exception."""

    def cancelled(self, where: Literal["waiting", "running"]) -> None:
        """A job was given up."""

    def finished(self, job: Job, done: Frame) -> None:
        """A job was answered."""

    def restarted(self, reason: Restart) -> None:
        """An engine ended that should not have."""

    def verified(self, ok: bool) -> None:
        """An engine compared its weights with what they were."""
