"""The documents of whatever was given as a corpus, checked one by one, and compared with those of an earlier reading.

Knows the kinds of corpora and a finished store. Does not know stages or segments.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ..store.corpus import Corpus as FileCorpus
from ..store.corpus import iter_corpus
from ..store.document import Document, fault_of
from ..store.text_store import TextStore

Corpus = Iterable[Document | str] | Callable[[], Iterable[Document | str]] | str | os.PathLike[str]
"""Documents; or a function that returns them; or the path of a corpus."""


def can_be_read_again(corpus: Corpus) -> bool:
    """Return whether a second reading gives the documents of the first."""
    if isinstance(corpus, FileCorpus):
        return corpus.can_be_read_again
    return callable(corpus) or isinstance(corpus, str | os.PathLike) or iter(corpus) is not corpus


def bytes_of(text: str) -> int:
    """Return the bytes of a text's UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


def documents_of(corpus: Corpus) -> Iterator[Document]:
    """Yield the documents of a corpus of any kind.

    Raises:
        TypeError: One is neither a Document nor a text.
        ValueError: One is such that a store cannot keep it: lone surrogates, numbers that are not finite.
    """
    if isinstance(corpus, str | os.PathLike):
        documents: Iterable[Document | str] = iter_corpus(corpus)
    else:
        documents = corpus() if callable(corpus) else corpus
    checked = isinstance(documents, FileCorpus)  # which lists what it leaves out, and goes on
    for number, document in enumerate(documents):
        checked_document = Document(document) if isinstance(document, str) else document
        if not isinstance(checked_document, Document):
            raise TypeError(f"document {number} must be a Document or str, got {type(document).__name__}")
        if not checked and (fault := fault_of(checked_document)) is not None:
            raise ValueError(f"document {number}: {fault}")
        yield checked_document


def compare_documents(documents: Iterator[Document], path: Path, base: int, remedy: str) -> None:
    """Take a finished segment's documents from the corpus; they must be those in its store."""
    with TextStore.open(path) as store:
        for i, written in enumerate(store):
            document = next(documents, None)
            if document is None or document.text != written.text or document.meta != written.meta:
                raise ValueError(f"document {base + i} differs from the one that the interrupted build read. {remedy}")
