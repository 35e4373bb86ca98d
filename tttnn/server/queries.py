"""`/v1/search`, `/v1/adapt`, `/v1/score`, `/v1/replay` and `/v1/embeddings`: from the request's fields to work.

Knows their fields. Does not know HTTP or how an engine does the work.
"""

from __future__ import annotations

from typing import Any

from ..config import ServeConfig
from ..dispatch.job import Job
from ..dispatch.refusals import bad
from ..engines.cost import Work
from ..engines.pipe import Frame
from .asked import adapting
from .completions import take_model
from .fields import Fields
from .tokens import TokenCounter

MAX_TEXTS = 256
"""Texts that one request embeds."""


def search(value: Any, facts: Frame, config: ServeConfig, tenant: str) -> Job:
    """Understand the body of `/v1/search`: `query`, `k`, and under ``tttnn`` where, exclude_digests, deadline_ms."""
    fields = Fields(value)
    query = fields.needed_text("query")
    k = fields.take("k", 10)
    if type(k) is not int or not 1 <= k <= 1000:
        raise fields.wrong("k", "must be a whole number from 1 to 1000")
    how = adapting(fields, facts, config.max_neighbors)
    fields.end()
    if how.query is not None:
        raise bad("tttnn.query must not be given beside query", param="tttnn.query")
    payload = {"query": query, "k": k, **how.payload(tenant)}
    return Job("search", payload, Work(adaptations=1), deadline_ms=how.asked.deadline_ms)


def adapt(value: Any, facts: Frame, config: ServeConfig, tenant: str) -> Job:
    """Understand the body of `/v1/adapt`: `query`, and ``tttnn``."""
    fields = Fields(value)
    take_model(fields, facts)
    query = fields.needed_text("query")
    how = adapting(fields, facts, config.max_neighbors)
    fields.end()
    if how.query is not None:
        raise bad("tttnn.query must not be given beside query", param="tttnn.query")
    if how.asked.mode == "base":
        raise bad("tttnn.mode must be exact, instant or auto to adapt, got base", param="tttnn.mode")
    if how.mode == "base":
        raise bad(
            "tttnn.num_neighbors must be at least 1 to adapt without neighbors in the context, got 0",
            param="tttnn.num_neighbors",
        )
    payload = {"query": query, **how.payload(tenant)}
    return Job("adapt", payload, how.work(facts, 1, 0), deadline_ms=how.asked.deadline_ms)


async def score(value: Any, facts: Frame, config: ServeConfig, counter: TokenCounter, tenant: str) -> Job:
    """Understand the body of `/v1/score`: `text`, `context`, and ``tttnn``.

    The query is ``tttnn.query``, else the context; there must be one of them unless the model stays as it is, so that
    nobody searches with what is scored without saying so.
    """
    fields = Fields(value)
    take_model(fields, facts)
    text = fields.text("text")
    if not text:
        raise fields.wrong("text", "must be a text that is not empty", code="missing_field" if text is None else None)
    context = fields.text("context", "") or ""
    how = adapting(fields, facts, config.max_neighbors)
    fields.end()
    query = how.query if how.query is not None else context
    if how.mode != "base" and not query.strip():
        raise bad(
            "tttnn.query must be given where there is no context. To search with the scored text itself, give it here",
            param="tttnn.query",
            code="missing_field",
        )
    counts = [await counter.count(part) for part in (text, context)]
    tokens = sum(len(part) // 3 if n is None else n for part, n in zip((text, context), counts, strict=True))
    if tokens > config.max_score_tokens:
        raise bad(
            f"text and context must have at most {config.max_score_tokens} tokens together, got {tokens}",
            param="text",
            code="context_length_exceeded",
        )
    times = 1 + how.asked.compare
    payload = {"text": text, "context": context, "query": query, **how.payload(tenant)}
    work = how.work(facts, 1, 1, read_tokens=times * tokens)
    return Job("score", payload, work, deadline_ms=how.asked.deadline_ms)


def replay(value: Any, facts: Frame, config: ServeConfig) -> Job:
    """Understand the body of `/v1/replay`: `report`, from an answer's ``tttnn.adaptations[i].report``."""
    fields = Fields(value)
    report = fields.take("report")
    fields.end()
    if report is None:
        raise bad("report must be the report of an adaptation", param="report", code="missing_field")
    if not _is_report(report):
        raise bad("report must be one that this server gave, whole", param="report")
    neighbors = report["neighbors"]
    if len(neighbors) > max(config.max_neighbors, facts["settings"]["num_neighbors"]):
        raise bad(f"report must have at most {config.max_neighbors} neighbors", param="report")
    work = Work(adaptations=1, neighbors=len(neighbors), token_limit=facts["settings"]["max_neighbor_tokens"])
    return Job("replay", {"report": report}, work)


async def embed(value: Any, facts: Frame, counter_limit: int) -> tuple[Job, bool]:
    """Understand the body of `/v1/embeddings`: `input`, `model`, `encoding_format`; say whether base64 is wanted."""
    fields = Fields(value)
    embedder = facts["embedder"]
    if embedder is None:
        raise bad(
            "the datastore must know its embedder for /v1/embeddings. Start the server with: tttnn serve --embedder",
            param="model",
            code="unsupported",
        )
    name = fields.text("model")
    if name is not None and name != embedder["name"]:
        refused = bad("model must be the embedder that /v1/models names", param="model", code="model_not_found")
        refused.status = 404
        raise refused
    if not isinstance(value.get("input"), str | list):
        raise fields.wrong("input", "must be a text or a list of texts")
    texts = fields.texts("input", MAX_TEXTS)
    if not texts or not all(text.strip() for text in texts):
        raise fields.wrong("input", "must hold texts that are not empty")
    if sum(map(len, texts)) > counter_limit:
        raise fields.wrong("input", f"must hold at most {counter_limit} characters")
    form = fields.text("encoding_format", "float")
    if form not in ("float", "base64"):
        raise fields.wrong("encoding_format", "must be float or base64")
    fields.only("dimensions", embedder["dim"], otherwise=f"must be {embedder['dim']}, as the embedder makes them")
    fields.text("user")
    fields.end()
    return Job("embed", {"texts": texts}, Work(texts=len(texts))), form == "base64"


def _is_report(value: Any) -> bool:
    """Say whether a value has what replaying reads of a report, each of its kind."""
    guard = value.get("guard") if isinstance(value, dict) else None
    return (
        isinstance(value, dict)
        and _is_count(value.get("steps"))
        and all(isinstance(value.get(name), str) for name in ("model", "query_digest"))
        and isinstance(value.get("settings"), dict)
        and isinstance(value.get("neighbors"), list)
        and all(map(_is_neighbor, value["neighbors"]))
        and (guard is None or _is_guard(guard))
    )


def _is_neighbor(value: Any) -> bool:
    span = value.get("span") if isinstance(value, dict) else None
    return (
        isinstance(value, dict)
        and _is_count(value.get("id"))
        and _is_number(value.get("distance"))
        and isinstance(value.get("digest"), str)
        and isinstance(value.get("source"), str | None)
        and (span is None or (isinstance(span, list) and len(span) == 2 and all(map(_is_count, span))))
        and isinstance(value.get("losses"), list)
        and all(map(_is_number, value["losses"]))
    )


def _is_guard(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"scores", "after", "kept", "reason"}
        and all(isinstance(value[name], list) and all(map(_is_number, value[name])) for name in ("scores", "after"))
        and (value["kept"] is None or _is_count(value["kept"]))
        and isinstance(value["reason"], str | None)
    )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63
