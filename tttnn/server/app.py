"""The HTTP application: routes, each a few lines between a request's fields and a job's result.

Knows HTTP. Does not know models: what an engine does is told through jobs.
"""

from __future__ import annotations

import base64
import contextlib
import struct
from collections.abc import AsyncIterator, Sequence
from importlib import resources
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from ..config import ServeConfig
from ..dispatch.dispatcher import Dispatcher
from ..dispatch.refusals import Refused
from ..recipe import TrainerRecipe
from ..version import __version__
from . import completions, queries
from .asked import modes
from .body import json_body
from .door import Door, Keys
from .metrics import Metrics
from .replies import Reply, embeddings, server_timing
from .streams import Stream, answered
from .tokens import TokenCounter

_PAGE = {
    "/": ("page.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
    "/page.svg": ("page.svg", "image/svg+xml"),
}
_PAGE_HEADERS = {
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


class App:
    """An ASGI application that answers with adapted models; made by `create_app`.

    Served alone, its lifespan starts and ends the engines. Mounted in another application, whose lifespan is the only
    one that runs, enter `running` there; where nobody does, the first request starts the engines, and they end with the
    event loop.
    """

    def __init__(self, dispatcher: Dispatcher, metrics: Metrics, keys: Keys) -> None:
        self.dispatcher = dispatcher
        self.metrics = metrics
        self._config = dispatcher.config
        self._entered = False
        self._counter: TokenCounter | None = None
        routes = [
            Route("/v1/completions", self._completions, methods=["POST"]),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/embeddings", self._embeddings, methods=["POST"]),
            Route("/v1/models", self._models),
            Route("/v1/search", self._search, methods=["POST"]),
            Route("/v1/adapt", self._adapt, methods=["POST"]),
            Route("/v1/score", self._score, methods=["POST"]),
            Route("/v1/replay", self._replay, methods=["POST"]),
            Route("/live", self._live),
            Route("/ready", self._ready),
            Route("/health", self._health),
            Route("/metrics", self._metrics),
            Route("/info", self._info),
            *(Route(path, self._page) for path in _PAGE),
        ]
        router = Router(routes, redirect_slashes=False, lifespan=lambda _: self.running())
        self._door: ASGIApp = Door(router, keys=keys, metrics=metrics, routes=[route.path for route in routes])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "http" and not self._entered:
            self.dispatcher.start()
        # An application around this one keeps its own. What is not found is raised here, and answered at the door.
        own = {**scope, "app": self, "state": dict(scope.get("state") or {})}
        await self._door(own, receive, send)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start the engines, and end them when the block ends; requests that come first are told to wait."""
        self._entered = True
        self.dispatcher.start()
        try:
            yield
        finally:
            await self.dispatcher.close()

    # --- answers ---

    async def _completions(self, request: Request) -> Any:
        return await self._complete(request, chat=False)

    async def _chat(self, request: Request) -> Any:
        return await self._complete(request, chat=True)

    async def _complete(self, request: Request, *, chat: bool) -> Any:
        value, facts = await json_body(request, self._config), self._facts()
        understand = completions.chat if chat else completions.completion
        wanted = understand(value, facts, self._config)
        job = await completions.work_for(wanted, facts, self._counted(facts), request.state.tenant)
        model = facts["model"]
        reply = Reply(request.state.request_id, model["name"], model["digest"], chat=chat)
        self.dispatcher.submit(job)
        if wanted.stream:
            events = wanted.adapting.asked.events
            return Stream(self.dispatcher, job, reply, usage=wanted.include_usage, events=events)
        result = await answered(request.receive, self.dispatcher, job)
        return JSONResponse(reply.whole(job, result), headers={"server-timing": server_timing(job, result["seconds"])})

    async def _embeddings(self, request: Request) -> Response:
        value, facts = await json_body(request, self._config), self._facts()
        job, as_base64 = await queries.embed(value, facts, self._config.max_body_bytes)
        self.dispatcher.submit(job)
        result = await answered(request.receive, self.dispatcher, job)
        vectors = result["vectors"]
        if as_base64:
            vectors = [base64.b64encode(struct.pack(f"<{len(v)}f", *v)).decode("ascii") for v in vectors]
        return JSONResponse(embeddings(facts["embedder"]["name"], vectors, result["tokens"]))

    async def _search(self, request: Request) -> Response:
        value, facts = await json_body(request, self._config), self._facts()
        return await self._plain(request, queries.search(value, facts, self._config, request.state.tenant))

    async def _adapt(self, request: Request) -> Response:
        value, facts = await json_body(request, self._config), self._facts()
        return await self._plain(request, queries.adapt(value, facts, self._config, request.state.tenant))

    async def _score(self, request: Request) -> Response:
        value, facts = await json_body(request, self._config), self._facts()
        counter = self._counted(facts)
        return await self._plain(
            request, await queries.score(value, facts, self._config, counter, request.state.tenant)
        )

    async def _replay(self, request: Request) -> Response:
        value, facts = await json_body(request, self._config), self._facts()
        return await self._plain(request, queries.replay(value, facts, self._config))

    async def _plain(self, request: Request, job: Any) -> Response:
        """Answer with what the engine gives, and what it cost."""
        self.dispatcher.submit(job)
        result = await answered(request.receive, self.dispatcher, job)
        seconds = result["seconds"]
        about = {
            "request_id": request.state.request_id,
            "queue_seconds": round(job.queue_seconds, 6),
            "predicted_seconds": round(job.predicted_seconds, 6),
            "actual_seconds": round(job.actual_seconds, 6),
        }
        return JSONResponse({**result, "tttnn": about}, headers={"server-timing": server_timing(job, seconds)})

    # --- about the server ---

    async def _live(self, request: Request) -> Response:
        return JSONResponse({"live": True})

    async def _ready(self, request: Request) -> Response:
        reason = self.dispatcher.not_ready()
        return JSONResponse({"ready": reason is None, "reason": reason}, 200 if reason is None else 503)

    async def _health(self, request: Request) -> Response:
        reason = self.dispatcher.not_ready()
        line = self.dispatcher.line
        described = {
            "ready": reason is None,
            "reason": reason,
            "engines": self._config.engines,
            "engines_ready": self.dispatcher.engines_up,
            "waiting": line.waiting,
            "running": line.running,
            "backlog_seconds": round(line.seconds(), 3),
        }
        return JSONResponse(described, 200 if reason is None else 503)

    async def _metrics(self, request: Request) -> Response:
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _models(self, request: Request) -> Response:
        facts = self._facts()
        names = [facts["model"]["name"], *([facts["embedder"]["name"]] if facts["embedder"] else [])]
        data = [{"id": name, "object": "model", "created": facts["started"], "owned_by": "tttnn"} for name in names]
        return JSONResponse({"object": "list", "data": data})

    async def _info(self, request: Request) -> Response:
        facts = self._facts()
        shown = {name: facts[name] for name in ("model", "embedder", "datastore", "settings", "threads", "versions")}
        limits = {
            **facts["limits"],
            **self._config.to_dict(),
            "max_prompts": completions.MAX_PROMPTS,
            "max_stops": completions.MAX_STOPS,
            "max_logprobs": completions.MAX_LOGPROBS,
            "max_texts": queries.MAX_TEXTS,
        }
        return JSONResponse({"tttnn": __version__, "modes": modes(facts), **shown, "limits": limits})

    async def _page(self, request: Request) -> Response:
        path = request.url.path.removeprefix(request.scope.get("root_path", ""))
        name, kind = _PAGE[path]
        content = resources.files(__package__).joinpath("web", name).read_bytes()
        return Response(content, media_type=kind, headers=_PAGE_HEADERS)

    # ---

    def _facts(self) -> dict[str, Any]:
        """Return what the engine is, which nothing can be asked of before it is loaded."""
        reason = self.dispatcher.not_ready()
        if self.dispatcher.facts is None or reason == "draining":
            raise Refused(503, reason or "loading", "the server is not ready: see /ready", retry_after=5)
        return self.dispatcher.facts

    def _counted(self, facts: dict[str, Any]) -> TokenCounter:
        if self._counter is None:
            self._counter = TokenCounter(facts["tokenizer"])
        return self._counter


def create_app(
    recipe: TrainerRecipe,
    config: ServeConfig | None = None,
    *,
    name: str | None = None,
    api_keys: Sequence[str] = (),
) -> App:
    """Return an ASGI application that answers the OpenAI API with adapted models.

    Args:
        recipe: the model, the datastore and how to adapt.
        config: limits and engines.
        name: what clients call the model; None: `recipe.model_name`.
        api_keys: requests must bring one of them; none: anybody may ask.

    Example:
        >>> app = create_app(TrainerRecipe("smollm2-135m", "pile-00"))  # doctest: +SKIP
        >>> uvicorn.run(app)  # doctest: +SKIP
    """
    metrics = Metrics()
    config = ServeConfig() if config is None else config
    loads = {
        "recipe": recipe.to_dict(),
        "name": recipe.model_name if name is None else name,
        "verify_every": config.verify_every,
    }
    dispatcher = Dispatcher(loads, config, metrics)
    metrics.watch(dispatcher)
    return App(dispatcher, metrics, Keys(api_keys))
