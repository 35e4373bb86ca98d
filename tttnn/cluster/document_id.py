"""The id of a document of a cluster: its shard and its id there, in one number that sorts as the pair does.

Knows the number's layout. Does not know shards.
"""

from __future__ import annotations

_BITS = 40  # ids in a shard; with up to 8,192 shards the number is one that JSON's readers keep exactly
_MASK = (1 << _BITS) - 1
MOST_SHARDS = 1 << (53 - _BITS)


class DocumentId(int):
    """A document's id in a cluster; shown as ``shard:id``.

    >>> found = DocumentId.of(3, 17)
    >>> str(found), found.shard, found.local, DocumentId.read("3:17") == found
    ('3:17', 3, 17, True)
    """

    @classmethod
    def of(cls, shard: int, local: int) -> DocumentId:
        """Return the id of document `local` of a shard."""
        if not 0 <= shard < MOST_SHARDS or not 0 <= local <= _MASK:
            raise IndexError(
                f"document id must have a shard below {MOST_SHARDS} and an id below {_MASK + 1}, got {shard}:{local}"
            )
        return cls(shard << _BITS | local)

    @classmethod
    def read(cls, text: str) -> DocumentId:
        """Return the id that is written as ``shard:id``, or as its number.

        Raises:
            ValueError: It is neither.
        """
        shard, colon, local = text.partition(":")
        if not all(part.isascii() and part.isdigit() for part in ([shard, local] if colon else [shard])):
            raise ValueError(f"document id must be written as shard:id, got {text!r}")
        if colon:
            return cls.of(int(shard), int(local))
        return cls.of(int(shard) >> _BITS, int(shard) & _MASK)

    @property
    def shard(self) -> int:
        """The number of the shard."""
        return int(self) >> _BITS

    @property
    def local(self) -> int:
        """The id in the shard."""
        return int(self) & _MASK

    def __str__(self) -> str:
        return f"{self.shard}:{self.local}"

    def __format__(self, layout: str) -> str:
        return format(str(self), layout)
