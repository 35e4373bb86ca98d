"""The text store and its rivals behind one interface: build a file of texts, open it, read one, read many, close."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

LEVEL = 6


class Ours:
    name, checks = "tttnn", True
    io = "mmap"

    def build(self, path: Path, texts: list[str]) -> None:
        from tttnn.store.writer import TextStoreWriter

        with TextStoreWriter(path) as writer:
            for text in texts:
                writer.append(text)

    def open(self, path: Path) -> None:
        from tttnn.store.text_store import TextStore

        self.store = TextStore.open(path, io=self.io)

    def read(self, i: int) -> str:
        return self.store.read_text(i)

    def read_many(self, ids: np.ndarray) -> list[str]:
        return self.store.read_many(ids, texts_only=True)

    def close(self) -> None:
        self.store.close()


class OursPread(Ours):
    name = "tttnn, pread"
    io = "pread"


class OursNoDictionary(Ours):
    name = "tttnn, no dictionary"

    def build(self, path: Path, texts: list[str]) -> None:
        from tttnn.config import StoreConfig
        from tttnn.store.writer import TextStoreWriter

        with TextStoreWriter(path, config=StoreConfig(dictionary_bytes=0)) as writer:
            for text in texts:
                writer.append(text)


class Rival(ABC):
    name: str
    checks: bool

    def read_many(self, ids: np.ndarray) -> list[str]:
        return [self.read(i) for i in ids.tolist()]

    @abstractmethod
    def read(self, i: int) -> str: ...

    def close(self) -> None:  # noqa: B027
        """Give back what `open` took; most rivals hold nothing."""


class Frames(Rival):
    """python-zstandard: one frame per document, offsets in numpy, over mmap."""

    name, checks = "zstandard frames", True

    def build(self, path: Path, texts: list[str]) -> None:
        import zstandard

        compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True)
        offsets = [0]
        with path.open("wb") as file:
            for text in texts:
                file.write(compressor.compress(text.encode()))
                offsets.append(file.tell())
            np.save(file, np.array(offsets, np.int64))

    def open(self, path: Path) -> None:
        import mmap

        import zstandard

        size = path.stat().st_size
        with path.open("rb") as file:
            self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            count = COUNT[0] + 1
            file.seek(size - 8 * count)
            self.offsets = np.frombuffer(file.read(8 * count), np.int64).tolist()
        self.view = memoryview(self.map)
        self.decompressor = zstandard.ZstdDecompressor()

    def read(self, i: int) -> str:
        return self.decompressor.decompress(self.view[self.offsets[i] : self.offsets[i + 1]]).decode()

    def read_many(self, ids: np.ndarray) -> list[str]:
        frames = [self.view[self.offsets[i] : self.offsets[i + 1]] for i in ids.tolist()]
        decoded = self.decompressor.multi_decompress_to_buffer(frames, threads=-1)
        return [str(segment.tobytes(), "utf-8") for segment in decoded]


class Lmdb(Rival):
    name, checks = "lmdb + zstd", True

    def build(self, path: Path, texts: list[str]) -> None:
        import lmdb
        import zstandard

        compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True)
        environment = lmdb.open(str(path), map_size=1 << 34, subdir=False, lock=False)
        with environment.begin(write=True) as transaction:
            for i, text in enumerate(texts):
                transaction.put(i.to_bytes(8, "big"), compressor.compress(text.encode()), append=True)
        environment.sync(True)
        environment.close()

    def open(self, path: Path) -> None:
        import lmdb
        import zstandard

        self.environment = lmdb.open(str(path), subdir=False, readonly=True, lock=False, readahead=False)
        self.transaction = self.environment.begin(buffers=True)
        self.decompressor = zstandard.ZstdDecompressor()

    def read(self, i: int) -> str:
        return self.decompressor.decompress(self.transaction.get(i.to_bytes(8, "big"))).decode()

    def read_many(self, ids: np.ndarray) -> list[str]:
        get = self.transaction.get
        frames = [get(i.to_bytes(8, "big")) for i in ids.tolist()]
        decoded = self.decompressor.multi_decompress_to_buffer(frames, threads=-1)
        return [str(segment.tobytes(), "utf-8") for segment in decoded]

    def close(self) -> None:
        self.transaction.abort()
        self.environment.close()


class Bagz(Rival):
    name, checks = "bagz", False

    def build(self, path: Path, texts: list[str]) -> None:
        import bagz

        options = bagz.Writer.Options(compression=bagz.CompressionZstd(level=LEVEL))
        with bagz.Writer(str(path), options) as writer:
            for text in texts:
                writer.write(text.encode())

    def open(self, path: Path) -> None:
        import bagz

        self.reader = bagz.Reader(str(path), bagz.Reader.Options(compression=bagz.CompressionZstd()))

    def read(self, i: int) -> str:
        return str(self.reader[i], "utf-8")

    def read_many(self, ids: np.ndarray) -> list[str]:
        return [text.decode() for text in self.reader.read_indices(ids)]


class ArrayRecord(Rival):
    name, checks = "array-record, group 1", True
    options = f"group_size:1,zstd:{LEVEL}"

    def build(self, path: Path, texts: list[str]) -> None:
        from array_record.python.array_record_module import ArrayRecordWriter

        writer = ArrayRecordWriter(str(path), self.options)
        for text in texts:
            writer.write(text.encode())
        writer.close()

    def open(self, path: Path) -> None:
        from array_record.python.array_record_module import ArrayRecordReader

        self.single = ArrayRecordReader(str(path), "readahead_buffer_size:0,max_parallelism:0")
        self.batch = ArrayRecordReader(str(path), "readahead_buffer_size:0")

    def read(self, i: int) -> str:
        self.single.seek(i)
        return self.single.read().decode()

    def read_many(self, ids: np.ndarray) -> list[str]:
        return [text.decode() for text in self.batch.read(ids.tolist())]

    def close(self) -> None:
        self.single.close()
        self.batch.close()


class ArrayRecordGroups(ArrayRecord):
    name = "array-record, group 16"
    options = f"group_size:16,zstd:{LEVEL}"


class JsonLines(Rival):
    name, checks = "JSONL + offsets", False

    def build(self, path: Path, texts: list[str]) -> None:
        offsets = [0]
        with path.open("wb") as file:
            for text in texts:
                file.write(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n")
                offsets.append(file.tell())
            file.write(np.array(offsets, np.int64).tobytes())

    def open(self, path: Path) -> None:
        import mmap

        with path.open("rb") as file:
            self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.offsets = np.frombuffer(self.map[-8 * (COUNT[0] + 1) :], np.int64).tolist()

    def read(self, i: int) -> str:
        text: str = json.loads(self.map[self.offsets[i] : self.offsets[i + 1]])["text"]
        return text


class Arrow(Rival):
    name, checks = "datasets (Arrow)", False

    def build(self, path: Path, texts: list[str]) -> None:
        import datasets

        datasets.disable_progress_bars()
        datasets.Dataset.from_dict({"text": texts}).save_to_disk(str(path))

    def open(self, path: Path) -> None:
        import datasets

        self.data = datasets.load_from_disk(str(path))

    def read(self, i: int) -> str:
        text: str = self.data[i]["text"]
        return text

    def read_many(self, ids: np.ndarray) -> list[str]:
        return list(self.data[ids]["text"])


class IndexedZstd(Rival):
    """indexed_zstd over frames of at least 64 KiB of text, with offsets of the documents in the whole text."""

    name, checks = "indexed_zstd, 64 KiB", True

    def build(self, path: Path, texts: list[str]) -> None:
        import zstandard

        compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True)
        offsets, waiting = [0], b""
        with path.open("wb") as file:
            for text in texts:
                data = text.encode()
                offsets.append(offsets[-1] + len(data))
                waiting += data
                if len(waiting) >= 1 << 16:
                    file.write(compressor.compress(waiting))
                    waiting = b""
            file.write(compressor.compress(waiting))
        np.array(offsets, np.int64).tofile(path.with_suffix(".offsets"))

    def open(self, path: Path) -> None:
        from indexed_zstd import IndexedZstdFile

        self.file = IndexedZstdFile(str(path))
        self.offsets = np.fromfile(path.with_suffix(".offsets"), np.int64).tolist()

    def read(self, i: int) -> str:
        self.file.seek(self.offsets[i])
        return str(self.file.read(self.offsets[i + 1] - self.offsets[i]), "utf-8")

    def close(self) -> None:
        self.file.close()


CONTESTANTS: list[Callable[[], Any]] = [
    Ours,
    OursPread,
    OursNoDictionary,
    Frames,
    Lmdb,
    Bagz,
    ArrayRecord,
    ArrayRecordGroups,
    JsonLines,
    Arrow,
    IndexedZstd,
]
COUNT = [0]  # documents, for the formats that need to be told
