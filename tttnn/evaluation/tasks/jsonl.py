"""Documents of a local corpus as the data set of the task ``tttnn_jsonl``.

Knows lm-evaluation-harness's form of a data set. Does not know models.
"""

from __future__ import annotations

from typing import Any

from lm_eval.api.task import ConfigurableTask

# Absolute: the harness loads this file by its path, outside of any package.
from tttnn.config import CorpusConfig
from tttnn.errors import ConfigError
from tttnn.files import digest_of
from tttnn.store.corpus import iter_corpus
from tttnn.store.document import text_digest


class LocalDocuments(ConfigurableTask):  # type: ignore[misc]
    """The task ``tttnn_jsonl``."""

    def __init__(self, config: dict[str, Any]) -> None:
        """Take the fields of tttnn_jsonl.yaml, which names this class among them."""
        super().__init__(config={name: value for name, value in config.items() if name != "class"})

    def build_all_requests(self, *, tokenizer_name: str = "", **options: Any) -> None:
        """Build requests; those that the harness kept (``--cache_requests``) count only for the same documents.

        The harness knows kept requests by the names of the task and of the tokenizer.
        """
        documents = digest_of(list(self.dataset["test"]["digest"]))
        super().build_all_requests(tokenizer_name=f"{tokenizer_name}-{documents}", **options)


def load(
    documents: str | None = None,
    group: str | None = None,
    text_field: str = "text",
    source_field: str | None = None,
    **_: Any,
) -> dict[str, Any]:
    """Return the data set ``{"test": ...}`` with columns text, group and digest, in the order of the corpus.

    Args:
        documents: path of a corpus, of any kind that `iter_corpus` reads.
        group: takes only the documents of this source.
        text_field: field or column that holds the text.
        source_field: field or column that names the source; None: ``pile_set_name`` in ``meta``.

    Raises:
        ConfigError: there is no path, or no document to measure.
    """
    import datasets

    if not documents:
        raise ConfigError(
            "documents must be the path of a corpus, got none. Give it with "
            """--metadata '{"documents": "val.jsonl.zst"}'"""
        )
    config = CorpusConfig(text_field=text_field, source_field=source_field)
    rows = [
        {"text": document.text, "group": document.source or "documents", "digest": text_digest(document.text)}
        for document in iter_corpus(documents, config)
        if document.text and group in (None, document.source)
    ]
    if not rows:
        raise ConfigError(f"{documents}: must hold at least one document{f' of group {group}' if group else ''}")
    return {"test": datasets.Dataset.from_list(rows)}


def text(doc: dict[str, Any]) -> str:
    """Return the text to score, unchanged: a template would lose white space at its end."""
    return str(doc["text"])
