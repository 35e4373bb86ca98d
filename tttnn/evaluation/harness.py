"""The model ``tttnn`` of lm-evaluation-harness: each query is adapted once, and its requests are answered together.

Knows requests, tokens of prompts and results. Does not know tasks, nor how a model is adapted.

What is searched with (the query) is never what is scored, but for one case that the results name:

- ``loglikelihood`` and ``generate_until``: the query is the end of the context. What is scored or written follows it.
  An empty context gives no query: the base model answers.
- ``loglikelihood_rolling``: the whole text is scored. With ``rolling=full``, the protocol of Hardt & Sun, it is also
  the query. With ``rolling=split`` the first half of its tokens is the query and is scored under the base model, the
  second half under the adapted one.

A neighbor whose text is what is scored, alone or after its context, is left out. With ``mode=instant`` and
``mode=auto`` so is every expert that saw a text which holds too much of it; see `overlap`. No neighbors stand in the
context: tasks bring their own.

No request ends a run: one whose context has no words, or whose adaptation fails, is answered by the base model, and the
results count it. Letters that are no characters (lone surrogates) are read as U+FFFD.

Prompts are cut into tokens as the harness does it for its model ``hf``: context and continuation together, and no
`bos` before a context unless the tokenizer puts it there, while `Scorer.score` takes them apart and puts it there.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, get_args

import torch

from .. import models
from ..errors import ConfigError, MissingExtraError
from ..files import digest_of
from ..lm.generate import continued
from ..lm.tokenizer_digest import digest_of_tokenizer
from ..lm.tokens import prefix_token
from ..recipe import RUNNING
from ..retrieval.retriever import require_full
from ..settings import check, read
from ..store.document import text_digest
from ..training.adapted_model import AdaptedModel
from ..training.report import AdaptReport
from ..training.trainer import TestTimeTrainer
from .faults import of_one_text, reason_of
from .harness_arguments import trainer_of
from .harness_prompts import DEFAULT_NEW_TOKENS, Prompts, readable, sampling_of
from .seen_texts import SeenByExperts

try:
    from lm_eval.api.model import CacheHook, TemplateLM
    from lm_eval.api.registry import register_model
    from tqdm import tqdm
except ImportError as error:
    raise MissingExtraError(
        f"lm-evaluation-harness is needed ({error}). Install it with: pip install 'tttnn[eval]'"
    ) from error

_log = logging.getLogger("tttnn")


Rolling = Literal["full", "split"]

_ANSWERED_BY = "tttnn: what these answers depend on"
"""Its key among the hashes of requests in the harness's cache of answers."""

_REASONS = 3
"""Reasons why adaptations failed that the results name."""


@register_model("tttnn")
class TttnnLM(TemplateLM):  # type: ignore[misc]
    """A language model that is adapted to the neighbors of each query.

    With ``num_neighbors=0`` its answers are those of the harness's own model ``hf`` in float32.

    Example:
        >>> lm = TttnnLM("smollm2-135m", "pile-00", k=10)  # doctest: +SKIP
        >>> lm_eval.simple_evaluate(lm, tasks=["lambada_openai"])  # doctest: +SKIP
    """

    def __init__(
        self,
        pretrained: str | TestTimeTrainer,
        datastore: str | None = None,
        *,
        cluster: str | None = None,
        embedder: str | None = None,
        k: int | None = None,
        query_tokens: int | None = 256,
        rolling: Rolling = "full",
        max_length: int | None = None,
        add_bos_token: bool | None = None,
        preset: str = "default",
        dtype: str = "float32",
        device: str | None = None,
        threads: int | None = None,
        cache_dir: str | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        **settings: Any,
    ) -> None:
        """Load model, datastore and embedder.

        Args:
            pretrained: demo name, hub id or directory; or a trainer, which then brings datastore and settings.
            datastore: its directory, or a cluster's; None where `k` is 0.
            cluster: instead of a datastore, a cluster that runs, by its name.
            embedder: instead of the one that the datastore was built with.
            k: neighbors to train on: another name of ``num_neighbors``.
            query_tokens: longest query; the end of a longer context is taken, because examples stand at its beginning.
                None: the whole context.
            rolling: how whole texts are scored; see this module.
            max_length: tokens in a scoring window, as for the harness's other models. None: the model's limit.
            add_bos_token: whether prompts begin with `bos`. None: as the tokenizer does it.
            preset: name of the settings that `settings` change.
            dtype: type of the weights.
            device: a torch device; None or an absent CUDA device: the CPU.
            threads: threads of torch on the CPU.
            cache_dir: where demo models are kept.
            batch_size: not used: requests of one query share its weights, those of two never do.
            max_batch_size: not used.
            settings: fields of `AdaptConfig` by name, of `SelectionConfig` after ``select_``, of `ScoreConfig` after
                ``score_``, as text or as values. AdaptConfig's own max_length is called ``adapt_max_length``.

        Raises:
            ConfigError: a setting has an unknown name or a value it may not have.
        """
        super().__init__()
        if rolling not in get_args(Rolling):
            raise ConfigError(f"rolling must be one of {', '.join(get_args(Rolling))}, got {rolling!r}")
        if cluster is not None:
            if datastore is not None:
                raise ConfigError(f"datastore must not be given beside cluster, got {datastore!r}")
            datastore = f"{RUNNING}{cluster}"
        given = read(int | None, query_tokens, "query_tokens")
        if isinstance(pretrained, TestTimeTrainer):
            for name, value in {"datastore": datastore, "k": k, "max_length": max_length, **settings}.items():
                if value is not None:
                    raise ConfigError(f"{name} must not be given beside a trainer, got {value!r}")
            self.trainer = pretrained
        else:
            named = {"num_neighbors": k, "score_max_length": max_length}
            self.trainer = trainer_of(
                pretrained,
                datastore,
                settings | {name: value for name, value in named.items() if value is not None},
                preset=preset,
                embedder=embedder,
                device=device,
                dtype=dtype,
                threads=threads,
                cache_dir=cache_dir,
            )
        if self.trainer.config.in_context:
            raise ConfigError(
                "context_neighbors must be 0 where tasks bring their own context, got "
                f"{self.trainer.config.in_context} (mode {self.trainer.config.mode}). Give context_neighbors=0."
            )
        require_full(self.trainer.datastore, "an evaluation")
        self.tokenizer = self.trainer.tokenizer
        self._prompts = Prompts(
            self.tokenizer,
            query_tokens=check(int | None, given, "query_tokens", minimum=1),
            add_bos_token=add_bos_token,
            window=self.max_length,
        )
        self._rolling = rolling
        self._device = next(self.trainer.model.parameters()).device
        self._counts = {"queries": 0, "without_query": 0, "found": 0, "excluded": 0, "steps": 0, "tokens": 0}
        self._counts["failed"] = 0
        self._failures: list[str] = []
        self._seen: SeenByExperts | None = None

    # -----------------------------------------------------------------------------------------------------------------
    # What the harness asks about a model
    # -----------------------------------------------------------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token before a text's first: `bos`, else `eos`."""
        return prefix_token(self.tokenizer)

    @property
    def max_length(self) -> int:
        """Tokens that are read at once."""
        return self.trainer.scorer.max_length

    @property
    def max_gen_toks(self) -> int:
        """Longest continuation where a task states none."""
        return DEFAULT_NEW_TOKENS

    @property
    def tokenizer_name(self) -> str:
        """Name of the tokenizer in the harness's cache of requests: another one of the same folder has another name."""
        rules = digest_of([digest_of_tokenizer(self.tokenizer), str(self.tokenizer.chat_template)])
        return f"{self.tokenizer.name_or_path}-{rules}".replace("/", "__")

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Let the harness keep answers (``--use_cache``), in a file that holds none of another model or other settings.

        The harness knows an answer by its request alone.

        Raises:
            ConfigError: the file holds answers of another model, datastore or setting, or does not say of which.
        """
        kept = cache_hook.dbdict
        if kept is not None:
            held, mine = kept.get(_ANSWERED_BY), self._answered_by()
            if held is None and len(kept) == 0:
                kept[_ANSWERED_BY] = mine
                kept.commit()
            elif held != mine:
                names = sorted(name for name in mine if held is not None and held.get(name) != mine[name])
                raise ConfigError(
                    f"use_cache must name a file of answers with the same settings, but those of {kept.filename} "
                    f"differ in {', '.join(names) or 'what it does not say'}. Give another file, or remove this one."
                )
        super().set_cache_hook(cache_hook)

    def _answered_by(self) -> dict[str, Any]:
        """Return what answers depend on beside requests, but for what rounds them otherwise: threads, devices."""
        described = self.trainer.describe().to_dict()
        versions = described.pop("versions")
        for name in ("name", "threads", "device", "parameters", "trained", "embedder"):
            del described[name]
        settings = described.pop("settings") | {f"score_{k}": v for k, v in described.pop("score").items()}
        experts = self.trainer.experts
        return {
            **described,
            **settings,
            "version": versions["tttnn"],
            "tokenizer": self.tokenizer_name.rpartition("-")[2],
            "experts": experts.digest() if experts is not None and self.trainer.config.mode != "exact" else None,
            **self._prompts.settings,
            "rolling": self._rolling,
            "max_length": self.max_length,
        }

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Write a conversation as one prompt, in the form that the tokenizer states."""
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return a text's tokens, with the tokenizer's special tokens unless the text begins with `bos` already."""
        return self._prompts.tokens(string, add_special_tokens)

    def get_model_info(self) -> dict[str, Any]:
        """Return what the harness writes into the results beside the model's arguments.

        ``tttnn`` holds the settings, the protocol in words, and over all requests so far counts and the first reasons
        why some were answered by the base model.
        """
        description = self.trainer.describe()
        rolling = {
            "full": "full: the query is the whole text that is scored",
            "split": "split: the query is the first half, scored under the base model; the rest under the adapted one",
        }
        tokens = self._prompts.query_tokens
        length = "" if tokens is None else f"the last {tokens} tokens of "
        return {
            "model_num_parameters": description.parameters,
            "model_dtype": f"torch.{description.dtype}",
            "tttnn": {
                "version": description.versions["tttnn"],
                "model": description.model,
                "model_name": description.name,
                "model_description": models.described(description.name),
                "datastore": description.datastore,
                "adapt": description.settings,
                "selection": description.selection,
                "score": description.score,
                "query": f"{length}the context, which is not scored",
                "loglikelihood_rolling": rolling[self._rolling],
                "counts": dict(self._counts),
                "failures": list(self._failures),
            },
        }

    # -----------------------------------------------------------------------------------------------------------------
    # Requests
    # -----------------------------------------------------------------------------------------------------------------

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return the log-likelihood of continuations, in nats, and whether each is the likeliest token by token."""
        # The harness's own cutting into tokens fails where there is nothing at all.
        asked = iter(super().loglikelihood([request for request in requests if any(request.args)], disable_tqdm))
        return [next(asked) if any(request.args) else (0.0, True) for request in requests]

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        def answer(i: int) -> tuple[float, bool]:
            (_, _), context, scored = requests[i]
            if not scored:
                return 0.0, True  # nothing is certain
            # The harness gives an empty context its first token, but not one of white space, which it moves behind.
            sequence = [*(context or [self.prefix_token_id]), *scored]
            if len(sequence) > self.max_length + 1 and len(scored) <= self.max_length:
                _log.warning("a context of %d tokens is cut: the model reads %d", len(context), self.max_length)
                sequence = sequence[-(self.max_length + 1) :]
            nats, same = self.trainer.scorer.token_scores(sequence, first=len(sequence) - len(scored))
            return -float(nats.sum()), bool(same.all())

        return self._answered(
            "loglikelihood",
            [request[0] for request in requests],
            [self._prompts.query(request[0][0]) for request in requests],
            [(scored, context + scored) for (context, scored), _, _ in requests],
            answer,
            disable_tqdm,
        )

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of whole texts, in nats; see this module for what the query is."""
        arguments = [request.args for request in requests]
        texts = [readable(str(text)) for (text,) in arguments]
        # The query of each text, and how many tokens follow it; under `full` all of them are scored together.
        halves = [self._prompts.half(text) if self._rolling == "split" else (text, 0) for text in texts]
        base: dict[int, torch.Tensor] = {}

        def nats(i: int) -> torch.Tensor:
            return self.trainer.scorer.token_nats([self.prefix_token_id, *self.tok_encode(texts[i])])

        def before(i: int) -> None:
            if self._rolling == "split":
                base[i] = nats(i)

        def answer(i: int) -> float:
            scored = nats(i)
            if i in base:
                cut = len(scored) - halves[i][1]
                scored = torch.cat([base.pop(i)[:cut], scored[cut:]])
            return -float(scored.sum())

        return self._answered(
            "loglikelihood_rolling",
            arguments,
            [query for query, _ in halves],
            [(text,) for text in texts],
            answer,
            disable_tqdm,
            before=before,
        )

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Continue contexts, the likeliest token each time unless the task samples."""
        arguments = [request.args for request in requests]
        for _, options in arguments:
            self._prompts.longest(options)  # a task's wrong limit is refused before anything is answered
        return self._answered(
            "generate_until",
            arguments,
            [self._prompts.query(context) for context, _ in arguments],
            [()] * len(arguments),
            lambda i: self._continued(*arguments[i]),
            disable_tqdm,
        )

    def _answered(
        self,
        kind: str,
        arguments: Sequence[Any],
        queries: Sequence[str],
        exclude: Sequence[tuple[str, ...]],
        answer: Callable[[int], Any],
        disable_tqdm: bool,
        *,
        before: Callable[[int], None] = lambda _: None,
    ) -> list[Any]:
        """Answer requests query by query, each adapted to once; return the answers in the order of the requests.

        Args:
            kind: name in the harness's cache.
            arguments: what that cache knows each request by.
            queries: text to search with, "" for the base model.
            exclude: texts that must not be trained on.
            answer: gives the answer to request i under the weights as they are then.
            disable_tqdm: shows no progress bar.
            before: called for request i under the base weights, where they are about to change.
        """
        groups: dict[str, list[int]] = {}
        for i, query in enumerate(queries):
            groups.setdefault(query, []).append(i)
        answers: list[Any] = [None] * len(queries)
        with tqdm(total=len(queries), desc=f"tttnn {kind}", disable=disable_tqdm) as bar:
            for query, members in groups.items():
                digests = self._excluded(query, [text for i in members for text in exclude[i]])
                left = deque(members)

                def answer_all(left: deque[int] = left) -> None:
                    while left:
                        i = left[0]
                        answers[i] = answer(i)
                        self.cache_hook.add_partial(kind, arguments[i], answers[i])
                        bar.update()
                        left.popleft()

                try:
                    with self._adaptation(query, digests, members, before) as adapted:
                        answer_all()
                    self._count(None if adapted is None else adapted.report)
                except Exception as error:
                    if not of_one_text(error):
                        raise
                    self._fail(error, len(left))
                    answer_all()
        return answers

    def _fail(self, error: Exception, requests: int) -> None:
        """Note that requests are answered by the base model, and why."""
        reason = reason_of(error)
        _log.warning("%d requests of a query are answered by the base model: %s", requests, reason)
        self._counts["failed"] += requests
        if reason not in self._failures and len(self._failures) < _REASONS:
            self._failures.append(reason)

    def _excluded(self, query: str, texts: Sequence[str]) -> set[str]:
        """Return the digests of texts that must not be learned from: themselves, and what experts saw that holds them.

        A neighbor is left out where its text is equal; an expert also where it saw a near copy, because it cannot be
        searched again without it.
        """
        digests = {text_digest(text) for text in texts}
        trainer = self.trainer
        if trainer.config.mode == "exact" or trainer.experts is None or trainer.datastore is None or not query.strip():
            return digests
        if self._seen is None:
            self._seen = SeenByExperts(trainer.experts, trainer.datastore.documents, trainer.texts)
        return digests | self._seen.holding(query, trainer.config, texts, None)

    def _adaptation(
        self, query: str, exclude: Iterable[str], members: Sequence[int], before: Callable[[int], None]
    ) -> AbstractContextManager[AdaptedModel | None]:
        """Return the block in which requests with one query are answered; under the base model where there is none."""
        if not query.strip() or not self.trainer.config.num_neighbors:
            self._counts["without_query"] += 0 if query.strip() else len(members)
            return nullcontext()

        if self.trainer.config.mode != "exact":
            for i in members:
                before(i)  # by the first observation experts are merged
            return self.trainer.adapt(query, exclude_digests=list(exclude))

        def observe(_: Any, neighbors: int) -> None:
            if neighbors == 0:
                for i in members:
                    before(i)

        return self.trainer.adapt(query, exclude_digests=list(exclude), observe=observe)

    def _count(self, report: AdaptReport | None) -> None:
        if report is not None:
            self._counts["queries"] += 1
            for name in ("found", "excluded", "steps", "tokens"):
                self._counts[name] += getattr(report, name)

    def _continued(self, context: str, options: dict[str, Any]) -> str:
        """Continue a context under the weights as they are, by the task's options and transformers' names for them.

        What the checkpoint says of generation counts too, as in the harness's own models.
        """
        drawn = dict(options)
        until = drawn.pop("until", None) or []
        end = self.tokenizer.decode(self.eot_token_id)
        with self.trainer.engine.turns.reading():
            return continued(
                self.trainer.model,
                self.tokenizer,
                self.tok_encode(context) or [self.prefix_token_id],
                window=self.max_length,
                max_new_tokens=self._prompts.longest(options),
                stop=[*([until] if isinstance(until, str) else until), end],
                checkpoint_settings=True,
                **sampling_of(drawn),
            ).text
