"""Replies as the OpenAI API writes them, with what is ours under ``tttnn``.

Knows what an engine's result holds. Does not know HTTP.
"""

from __future__ import annotations

import time
from typing import Any

from ..dispatch.job import Job
from ..engines.pipe import Frame


class Reply:
    """Writes the replies to one request."""

    def __init__(self, request_id: str, model: str, weights: str, *, chat: bool) -> None:
        """Begin a reply.

        Args:
            request_id: stands in the reply's id and under ``tttnn``.
            model: its name.
            weights: digest of the model as it is.
            chat: whether it is a chat's.
        """
        self._request_id = request_id
        self._weights = weights
        self._chat = chat
        self._head = {
            "id": ("chatcmpl-" if chat else "cmpl-") + request_id,
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, job: Job, result: Frame) -> Frame:
        """Return the answer in one."""
        return {
            **self._head,
            "object": "chat.completion" if self._chat else "text_completion",
            "choices": [self._choice(i, made) for i, made in enumerate(result["choices"])],
            "usage": usage(result),
            "tttnn": self.about(job, result),
        }

    def begin(self, index: int) -> Frame | None:
        """Return what comes before a choice's first piece; None where nothing does."""
        return self._chunk([self._delta(index, {"role": "assistant", "content": ""})]) if self._chat else None

    def piece(self, index: int, text: str) -> Frame:
        """Return the next piece of a choice."""
        return self._chunk([self._delta(index, {"content": text}) if self._chat else _piece(index, text)])

    def end(self, index: int, finish_reason: str) -> Frame:
        """Return the end of a choice."""
        return self._chunk([self._delta(index, {}, finish_reason) if self._chat else _piece(index, "", finish_reason)])

    def usage(self, result: Frame) -> Frame:
        """Return the chunk without a choice that a stream ends with where usage was asked for."""
        return {**self._chunk([]), "usage": usage(result)}

    def about(self, job: Job, result: Frame) -> Frame:
        """Return what stands under ``tttnn``."""
        reports = [adaptation["report"] for adaptation in result["adaptations"]]
        return {
            "request_id": self._request_id,
            "mode": result["mode"],
            "weights": self._weights,
            "queue_seconds": round(job.queue_seconds, 6),
            "predicted_seconds": round(job.predicted_seconds, 6),
            "actual_seconds": round(job.actual_seconds, 6),
            "seconds": result["seconds"],
            "coverage": {
                "requested": sum(report["requested"] for report in reports),
                "found": sum(report["found"] for report in reports),
                "trained": sum(len(report["neighbors"]) for report in reports),
            },
            "adaptations": result["adaptations"],
            **({"base": [made["base"] for made in result["choices"]]} if "base" in result["choices"][0] else {}),
        }

    def _choice(self, index: int, made: Frame) -> Frame:
        if self._chat:
            message = {"role": "assistant", "content": made["text"]}
            logprobs = None if made["logprobs"] is None else {"content": _chat_logprobs(made["logprobs"])}
            return {
                "index": index,
                "message": message,
                "logprobs": logprobs,
                "finish_reason": made["finish_reason"],
            }
        logprobs = None if made["logprobs"] is None else _logprobs(made["logprobs"])
        return {"index": index, "text": made["text"], "logprobs": logprobs, "finish_reason": made["finish_reason"]}

    def _chunk(self, choices: list[Frame]) -> Frame:
        return {
            **self._head,
            "object": "chat.completion.chunk" if self._chat else "text_completion",
            "choices": choices,
        }

    @staticmethod
    def _delta(index: int, delta: Frame, finish_reason: str | None = None) -> Frame:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def _piece(index: int, text: str, finish_reason: str | None = None) -> Frame:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason}


def usage(result: Frame) -> Frame:
    """Return the tokens that were read and written."""
    read = sum(made["prompt_tokens"] for made in result["choices"])
    written = sum(made["completion_tokens"] for made in result["choices"])
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def server_timing(job: Job, seconds: Frame) -> str:
    """Return the stages as the header of that name takes them, in milliseconds."""
    stages = {"queue": job.queue_seconds, **seconds}
    return ", ".join(f"{name};dur={1000 * value:.3f}" for name, value in stages.items())


def _logprobs(held: Frame) -> Frame:
    return {
        "tokens": held["tokens"],
        "token_logprobs": held["token_logprobs"],
        "top_logprobs": [None if top is None else _likeliest(top) for top in held["top"]],
        "text_offset": held["offsets"],
    }


def _likeliest(top: list[Any]) -> Frame:
    """Return tokens and their log-probabilities; of several that are written alike the likeliest."""
    held: Frame = {}
    for token, value in top:
        held.setdefault(token, value)
    return held


def _chat_logprobs(held: Frame) -> list[Frame]:
    return [
        {**_token(token, value), "top_logprobs": [_token(other, its) for other, its in top]}
        for token, value, top in zip(held["tokens"], held["token_logprobs"], held["top"], strict=True)
    ]


def _token(text: str, logprob: float) -> Frame:
    return {"token": text, "logprob": logprob, "bytes": None}


def embeddings(model: str, vectors: list[Any], tokens: int) -> Frame:
    """Return the reply of `/v1/embeddings`; a vector is a list of numbers, or base64."""
    data = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(vectors)]
    return {
        "object": "list",
        "data": data,
        "model": model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
