"""What tells one tokenizer from another.

Knows transformers' tokenizers. Does not know texts.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any


def digest_of_tokenizer(tokenizer: Any) -> str:
    """Return a digest of how a tokenizer reads texts, 32 hexadecimal digits.

    Of a fast one all of its rules; of another one its vocabulary, which is what can be asked of it.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        # How a call before cut or padded its batch is no part of a tokenizer.
        rules = json.loads(backend.to_str())
        rules.pop("truncation", None)
        rules.pop("padding", None)
    else:
        rules = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    text = json.dumps(rules, sort_keys=True)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
