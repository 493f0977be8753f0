"""Reads a Wikidata JSON dump as a stream, compressed or not.

A dump as published (https://dumps.wikimedia.org/wikidatawiki/entities/) is one JSON array: "[" on
the first line, one entity a line, "]" on the last.

bz2 is decompressed by rapidgzip on several cores, at one core the slowest step of all. gzip is left
to the standard library: it is fast enough on one core, and rapidgzip takes a truncated .gz for a
whole one.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..sources import CC0, Source
from .packages import load
from .provenance import FactSource

WIKIDATA = FactSource(
    kind="Wikidata dump",
    sources=(
        Source(
            name="Wikidata",
            address="https://www.wikidata.org",
            gives="facts, labels and numbers of statements",
            licence=CC0,
        ),
    ),
    recent="Facts about subjects whose items were modified shortly before the dump{}. The new "
    "target is what the dump says.",
    entities="Wikidata's items:",
    tags=("wikidata",),
)

CHUNK = 4 << 20  #: bytes of decompressed lines that are handed on together
READ = 1 << 16  #: bytes to ask a decompressor for
BZIP2_BLOCK = 1 << 20  #: bytes; more are in one only where a sign is repeated on and on

# What decompressors raise where an archive is cut off or damaged; rapidgzip has no errors of its
# own, and leaves a bare RuntimeError for the C++ exception.
_BREAKS = (EOFError, RuntimeError, ValueError, gzip.BadGzipFile, zlib.error)


class DumpError(ValueError):
    """A file that is no dump; the message says what was expected."""


class Archive:
    """The bytes of a .bz2, .gz or plain file (told apart by content), up to where it breaks."""

    def __init__(self, path: str | Path, threads: int = 2) -> None:
        """threads: for bz2, at least 2."""
        self.path = Path(path)
        self.size = self.path.stat().st_size  #: bytes, compressed
        self.problem = ""  #: why the archive could not be read to its end
        self._file = self.path.open("rb")
        self._parallel = False
        self._given = 0  # bytes, decompressed; after an error rapidgzip's tell() is beyond them
        magic = self._file.read(3)
        self._file.seek(0)
        self._stream: Any = self._file
        if magic == b"BZh":
            # With one thread it does not read again what lies before a break.
            bzip2 = load("rapidgzip").IndexedBzip2FileRaw
            self._stream = bzip2(str(self.path), parallelization=max(2, threads))
            self._parallel = True
        elif magic.startswith(b"\x1f\x8b"):
            self._stream = gzip.GzipFile(fileobj=self._file)

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._file.close()

    def position(self) -> int:
        """Bytes of the file read so far."""
        return (
            self._stream.bz2reader.tell_compressed() // 8 if self._parallel else self._file.tell()
        )

    def read(self) -> bytes:
        """Some of what follows; nothing at the end and at a break."""
        if self.problem:
            return b""
        try:
            found = self._stream.read(READ) if self._parallel else self._stream.read1(READ)
            if not found and self.position() < self.size:  # rapidgzip is silent about some damage
                self.problem = "what follows is no part of the archive"
            self._given += len(found)
            return found
        except _BREAKS as error:
            self.problem = str(error) or type(error).__name__
            return self._up_to_break() if self._parallel else b""

    def _up_to_break(self) -> bytes:
        """rapidgzip gives nothing of a read that meets the break: ask for less, down to a byte."""
        found, size = b"", READ
        while size := size // 2:
            try:
                self._stream.seek(self._given + len(found))
                while len(found) < BZIP2_BLOCK and (piece := self._stream.read(size)):
                    found += piece
                break
            except _BREAKS:
                continue
        return found

    def blocks(self, size: int = CHUNK, end: bytes = b"\n") -> Iterator[bytes]:
        """All bytes in blocks of `size` or somewhat more, each up to the last `end` in it.

        The same blocks whatever the decompressor's pieces. Of a broken archive the bytes after the
        last `end` are left out; of a whole one they are the last block.
        """
        block = bytearray()
        while piece := self.read():
            block += piece
            while len(block) >= size:
                cut = block.rfind(end, 0, size) + 1 or block.find(end, size) + 1
                if not cut:
                    break
                yield bytes(block[:cut])
                del block[:cut]
        if self.problem:
            del block[block.rfind(end) + 1 :]
        if block:
            yield bytes(block)


class Dump:
    """A dump's entities as chunks of whole lines.

    with Dump("latest-all.json.bz2") as dump:
        for chunk in dump.chunks(): ...
    """

    def __init__(self, path: str | Path, threads: int = 2) -> None:
        self.archive = Archive(path, threads)
        self.in_array = False  #: whether the lines stand between "[" and "]"
        self.truncated = False  #: known when all chunks are read

    def __enter__(self) -> Dump:
        return self

    def __exit__(self, *error: object) -> None:
        self.archive.__exit__(*error)

    def chunks(self, size: int = CHUNK) -> Iterator[bytes]:
        """Chunks of whole lines, "[" and "]" among them; the same ones in every run.

        Raises:
            DumpError: the file is no dump.
        """
        last = b""
        for number, chunk in enumerate(self.archive.blocks(size)):
            if number == 0:
                self._check(chunk)
            yield chunk
            last = chunk[-64:].rstrip().rpartition(b"\n")[2] or last
        if not last:
            self._check(b"")
        # An archive of several streams may be cut off between two of them, which looks whole.
        unclosed = self.in_array and last not in (b"]", b"[]")
        self.truncated = unclosed or bool(self.archive.problem)

    def _check(self, chunk: bytes) -> None:
        first = chunk.lstrip(b"\xef\xbb\xbf \t\r\n").split(b"\n", 1)[0].strip()
        self.in_array = first in (b"[", b"[]")
        if self.in_array:
            return
        if re.match(rb'\{\s*("(entities|success)"|$)', first):
            found = "one answer of Wikidata's API or Special:EntityData, not a dump"
        elif first.startswith(b"{"):  # one entity a line, as tools that filter dumps write it
            return
        elif not first and self.archive.problem:
            found = f"an archive that cannot be read ({self.archive.problem})"
        else:
            found = f"a file that begins with {first[:40].decode('utf-8', 'replace')!r}"
        raise DumpError(
            f"{self.archive.path} is {found}: give a JSON dump such as latest-all.json.bz2 or "
            '.json.gz, whose first line is "[" and then holds one entity a line.'
        )
