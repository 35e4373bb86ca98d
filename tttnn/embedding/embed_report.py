"""EmbedReport: what embedding has read, and where its time went. Knows numbers; does not know encoders."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class EmbedReport:
    """What embedding has read so far; filled by `Embedder.embed`."""

    texts: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    """Tokens given to the encoder, padding included."""
    truncated: int = 0
    """Texts longer than the encoder reads."""
    empty: int = 0
    """Texts embedded as a single space, because they were empty."""
    seconds: dict[str, float] = field(default_factory=dict)
    """encode: in the encoder; pool: pooling; wait: for the tokenizer."""

    def add_seconds(self, stage: str, seconds: float) -> None:
        """Add to one stage's seconds."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
