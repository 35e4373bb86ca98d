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
            "choices": [self._choice(i, choice) for i, choice in enumerate(result["choices"])],
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
            **({"base": [choice["base"] for choice in result["choices"]]} if "base" in result["choices"][0] else {}),
        }

    def _choice(self, index: int, choice: Frame) -> Frame:
        if self._chat:
            message = {"role": "assistant", "content": choice["text"]}
            logprobs = None if choice["logprobs"] is None else {"content": _chat_logprobs(choice["logprobs"])}
            return {
                "index": index,
                "message": message,
                "logprobs": logprobs,
                "finish_reason": choice["finish_reason"],
            }
        logprobs = None if choice["logprobs"] is None else _logprobs(choice["logprobs"])
        return {"index": index, "text": choice["text"], "logprobs": logprobs, "finish_reason": choice["finish_reason"]}

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
    read = sum(choice["prompt_tokens"] for choice in result["choices"])
    written = sum(choice["completion_tokens"] for choice in result["choices"])
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def server_timing(job: Job, seconds: Frame) -> str:
    """Return the stages as the header of that name takes them, in milliseconds."""
    stages = {"queue": job.queue_seconds, **seconds}
    return ", ".join(f"{name};dur={1000 * value:.3f}" for name, value in stages.items())


def _logprobs(of_tokens: Frame) -> Frame:
    return {
        "tokens": of_tokens["tokens"],
        "token_logprobs": of_tokens["token_logprobs"],
        "top_logprobs": [None if top is None else _likeliest(top) for top in of_tokens["top"]],
        "text_offset": of_tokens["offsets"],
    }


def _likeliest(top: list[Any]) -> Frame:
    """Return tokens and their log-probabilities; of several that are written alike the likeliest."""
    likeliest: Frame = {}
    for token, value in top:
        likeliest.setdefault(token, value)
    return likeliest


def _chat_logprobs(of_tokens: Frame) -> list[Frame]:
    return [
        {**_token(token, value), "top_logprobs": [_token(other, its) for other, its in top]}
        for token, value, top in zip(of_tokens["tokens"], of_tokens["token_logprobs"], of_tokens["top"], strict=True)
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
