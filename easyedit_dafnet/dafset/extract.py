"""Turns a Wikidata dump into the tables `entities` and `triples`.

Worker processes parse chunks of lines; this process decompresses the dump, collects the rows in the
dump's order and writes them as numbered pairs of Parquet parts, the same for any number of workers:

    entities-00000.parquet  id int64, label string, aliases list<string>, description string?,
                            title string?, sitelinks int32, modified timestamp[s]? (UTC, without a
                           zone: engines would convert it to their own), past bool
    triples-00000.parquet   head int64, relation int32, tail int64
    done.json               how far it is; written after each pair, so it never says too much
    counts.json             items, statements and what was skipped, when all is done
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .dump import CHUNK, Dump, DumpError
from .packages import load

LOG = logging.getLogger(__name__)

FORMAT = 2  #: of the folder; another one is not continued
CHUNKS_PER_PART = 256  #: about 1 GB of lines, some 70,000 items
HEAD = 1 << 20  #: bytes of the dump that tell it from others

_ENDED = "P582"  #: end time
_PAST = (
    *("P570", "P20", "P119", "P509", "P1196", "P157"),  #: date, place, cause of death and the like
    *("P576", _ENDED),  #: dissolved or abolished, end time
)
_AGAIN = "item once more"
_ALL_LANGUAGES = "mul"  #: where Wikidata keeps a label that is the same in most languages


@dataclass
class Rows:
    """Rows of both tables, and counts; those of several chunks add up."""

    entities: list[Any] = field(default_factory=list)  #: pyarrow record batches
    triples: list[Any] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)  #: "items" and "statements"
    skipped: Counter[str] = field(default_factory=Counter)  #: by reason
    items: list[int] = field(default_factory=list)  #: those that have rows

    def add(self, other: Rows) -> None:
        self.entities += other.entities
        self.triples += other.triples
        self.counts += other.counts
        self.skipped += other.skipped

    def drop(self, items: list[int]) -> None:
        """Without these items, which stand further up in the dump."""
        for name, key in (("entities", "id"), ("triples", "head")):
            kept = [_without(batch, key, items) for batch in getattr(self, name)]
            setattr(self, name, kept)
        self.skipped[_AGAIN] += len(items)


class Seen:
    """The items that were read, a bit each: 17 MB for 140 million of them."""

    def __init__(self) -> None:
        self.blocks: defaultdict[int, bytearray] = defaultdict(partial(bytearray, 1 << 17))

    def again(self, items: Iterable[int]) -> list[int]:
        """Those of the items that were seen before; from now on all of them were."""
        found = []
        for item in items:
            block, byte, bit = self.blocks[item >> 20], item >> 3 & 0x1FFFF, 1 << (item & 7)
            if block[byte] & bit:
                found.append(item)
            block[byte] |= bit
        return found


# -- One chunk, in a worker ------------------------------------------------------------------------


def schemas() -> tuple[Any, Any]:
    """The pyarrow schemas of entities and triples."""
    pa = load("pyarrow")
    entities = pa.schema(
        [
            pa.field("id", pa.int64(), nullable=False),
            pa.field("label", pa.string(), nullable=False),
            pa.field("aliases", pa.list_(pa.string()), nullable=False),
            pa.field("description", pa.string()),
            pa.field("title", pa.string()),
            pa.field("sitelinks", pa.int32(), nullable=False),
            pa.field("modified", pa.timestamp("s")),
            pa.field("past", pa.bool_(), nullable=False),
        ]
    )
    triples = pa.schema(
        [
            pa.field("head", pa.int64(), nullable=False),
            pa.field("relation", pa.int32(), nullable=False),
            pa.field("tail", pa.int64(), nullable=False),
        ]
    )
    return entities, triples


def parse(chunk: bytes, language: str) -> Rows:
    """The rows of a chunk of a dump's lines."""
    pa = load("pyarrow")
    loads = load("orjson").loads
    found = Rows()
    seen: set[int] = set()
    entities: list[tuple[Any, ...]] = []
    triples: list[tuple[int, int, int]] = []
    for line in chunk.split(b"\n"):
        line = line.strip(b" \t\r,")
        if line in (b"", b"[", b"]", b"[]"):
            continue
        try:
            item = loads(line)
            if reason := _not_an_item(item):
                found.skipped[reason] += 1
                continue
            number = _number(item["id"])
            entity, (facts, counts) = _entity(item, number, language), _triples(item, number)
        except (AttributeError, LookupError, TypeError, ValueError):  # not JSON or no entity
            found.skipped["damaged line"] += 1
            continue
        found.counts["items"] += 1
        found.counts["statements"] += len(facts) + counts.total()
        found.skipped += counts
        if entity is None:
            found.skipped["no label"] += 1
        if entity is None and not facts:
            continue
        if number in seen:
            found.skipped[_AGAIN] += 1
            continue
        seen.add(number)
        triples += facts
        if entity is not None:
            entities.append(entity)
    found.items = list(seen)
    entity_schema, triple_schema = schemas()
    found.entities = [_entity_batch(pa, entities, entity_schema)]
    columns = zip(*triples, strict=True) if triples else [()] * 3
    found.triples = [_batch(pa, columns, triple_schema)]
    return found


def _not_an_item(entity: Mapping[str, Any]) -> str:
    """Why the entity is left out; "" of an item."""
    if "redirect" in entity or "redirects" in entity or "id" not in entity:
        return "redirect"
    return "" if entity["type"] == "item" else "not an item"


def _entity(item: Mapping[str, Any], number: int, language: str) -> tuple[Any, ...] | None:
    """The item's row of `entities`, None where it has no label."""
    languages = (language, _ALL_LANGUAGES)
    labels, descriptions, aliases, links, claims = (
        item.get(name) or {}  # an empty map may be written as []
        for name in ("labels", "descriptions", "aliases", "sitelinks", "claims")
    )
    label = next((labels[code]["value"] for code in languages if code in labels), None)
    if not label:
        return None
    names = [alias["value"] for code in languages for alias in aliases.get(code, ())]
    site = f"{language.replace('-', '_')}wiki"
    return (
        number,
        label,
        [name for name in dict.fromkeys(names) if name != label],
        descriptions[language]["value"] if language in descriptions else None,
        links[site]["title"].replace(" ", "_") if site in links else None,
        len(links),
        item.get("modified"),
        any(_holds(statement) for code in _PAST for statement in claims.get(code, ())),
    )


def _holds(statement: Mapping[str, Any]) -> bool:
    """Whether the statement says that there is such a thing, known or not."""
    return statement["rank"] != "deprecated" and statement["mainsnak"]["snaktype"] != "novalue"


def _triples(item: Mapping[str, Any], head: int) -> tuple[list[tuple[int, int, int]], Counter[str]]:
    """The item's rows of `triples`, and why each of its other statements is none."""
    found: list[tuple[int, int, int]] = []
    skipped: Counter[str] = Counter()
    for relation, statements in (item.get("claims") or {}).items():
        # A property has one datatype; very old dumps leave it to the value.
        if statements[0]["mainsnak"].get("datatype", "wikibase-item") != "wikibase-item":
            skipped["wrong datatype"] += len(statements)
            continue
        number = _number(relation)
        best = "normal"
        if any(statement["rank"] == "preferred" for statement in statements):
            best = "preferred"
        tails = set()
        for statement in statements:
            tail, reason = _tail(statement, best)
            if not reason and tail in tails:
                reason = "said twice"
            if reason:
                skipped[reason] += 1
            else:
                tails.add(tail)
                found.append((head, number, tail))
    return found, skipped


def _tail(statement: Mapping[str, Any], best: str) -> tuple[int, str]:
    """The statement's item; 0 and the reason where it has none, or is not true any more."""
    rank, snak = statement["rank"], statement["mainsnak"]
    if rank != best:
        return 0, "deprecated" if rank == "deprecated" else "another one is preferred"
    if snak["snaktype"] != "value":
        return 0, "no value"
    qualifiers = statement.get("qualifiers") or {}
    if any(end["snaktype"] != "novalue" for end in qualifiers.get(_ENDED, ())):
        return 0, "ended"
    value = snak["datavalue"]["value"]
    if not isinstance(value, dict) or value.get("entity-type") != "item":
        return 0, "wrong datatype"
    # Old dumps have only the number, and new ones promise only the id.
    return _number(value.get("id") or f"Q{value['numeric-id']}"), ""


def _number(name: str) -> int:
    """42 of Q42 or P42."""
    number = int(name[1:])
    if not 0 < number < 1 << 31:  # Wikidata's own limit
        raise ValueError(f"{name} is no entity")
    return number


def _entity_batch(pa: Any, rows: list[tuple[Any, ...]], schema: Any) -> Any:
    """Rows of _entity, whose times are still text."""
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(schema)
    at = schema.get_field_index("modified")
    compute = load("pyarrow.compute")
    text = pa.array(columns[at], pa.string())
    columns[at] = compute.strptime(text, "%Y-%m-%dT%H:%M:%SZ", "s", error_is_null=True)
    return _batch(pa, columns, schema)


def _without(batch: Any, key: str, items: list[int]) -> Any:
    compute, pa = load("pyarrow.compute"), load("pyarrow")
    gone = compute.is_in(batch.column(key), value_set=pa.array(items, pa.int64()))
    return batch.filter(compute.invert(gone))


def _batch(pa: Any, columns: Iterable[Any], schema: Any) -> Any:
    arrays = [
        column if isinstance(column, pa.Array) else pa.array(column, kind)
        for column, kind in zip(columns, schema.types, strict=True)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


# -- Many chunks -----------------------------------------------------------------------------------


def _parsed(chunks: Iterable[bytes], language: str, jobs: int) -> Iterator[Rows]:
    """The rows of each chunk, in order; at most two chunks more than workers are in memory."""
    work = partial(parse, language=language)
    if jobs == 1:
        yield from map(work, chunks)
        return
    chunks = iter(chunks)
    context = multiprocessing.get_context("spawn")  # a fork of threads may hang
    with ProcessPoolExecutor(jobs, context, _end_with_parent) as pool:
        waiting: deque[Future[Rows]] = deque()
        try:
            for chunk in islice(chunks, jobs + 2):
                waiting.append(pool.submit(work, chunk))
            while waiting:
                rows = waiting.popleft().result()
                for chunk in islice(chunks, 1):
                    waiting.append(pool.submit(work, chunk))
                yield rows
        except BrokenProcessPool as error:
            raise RuntimeError(
                "A worker process ended before its chunk was parsed, probably for lack of memory: "
                "run the command again with fewer --jobs; finished parts are kept."
            ) from error
        finally:
            for future in waiting:
                future.cancel()


def _end_with_parent() -> None:
    """In a worker: a killed parent must not leave it waiting for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


# -- The folder ------------------------------------------------------------------------------------


def extract(
    dump: str | Path,
    out: str | Path,
    language: str = "en",
    jobs: int | None = None,
    progress: bool = True,
    *,
    chunk: int = CHUNK,
    chunks_per_part: int = CHUNKS_PER_PART,
) -> dict[str, Any]:
    """Write the tables `entities` and `triples` of a dump; goes on where an earlier run stopped.

    dump: a Wikidata JSON dump, .bz2, .gz or plain.
    out: folder of the tables, of this dump only.
    language: of labels, aliases, descriptions and Wikipedia pages.
    jobs: worker processes; as many as there are cores, at most 8: decompression feeds no more.
    chunk, chunks_per_part: bytes of lines that a worker parses at once, and how many make a part.

    Returns:
        What counts.json has: {"items": n, "statements": n, "entities": n, "triples": n,
        "skipped": {reason: n}}. Items without a label and statements that are no triples are among
        the skipped.

    Raises:
        DumpError: the file is no dump, or the folder has another one's tables.
    """
    for name in ("orjson", "pyarrow.parquet", "filelock"):
        load(name)
    from filelock import FileLock, Timeout

    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / ".lock").acquire(timeout=0):
            folder = Folder(out, _identity(Path(dump), language, chunk, chunks_per_part))
            if not folder.finished:
                _fill(folder, Path(dump), language, jobs or min(8, os.cpu_count() or 1), progress)
            return folder.summary()
    except Timeout:
        raise DumpError(f"Another process is extracting into {out}: wait for it.") from None


def _identity(dump: Path, language: str, chunk: int, chunks_per_part: int) -> dict[str, Any]:
    """What must be the same for a folder's parts to be kept."""
    with dump.open("rb") as file:
        head = sha256(file.read(HEAD)).hexdigest()
    status = dump.stat()
    return {
        "format": FORMAT,
        "size": status.st_size,
        "modified": int(status.st_mtime),
        "head": head,
        "language": language,
        "chunk": chunk,
        "chunks_per_part": chunks_per_part,
    }


class Folder:
    """The folder of the tables, and how far they are."""

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Raises DumpError where the folder has another dump's parts."""
        from ..bench.cells import read_json

        self.path, self.identity = path, dict(identity)
        state = read_json(path / "done.json") or {}
        if state and state["identity"] != self.identity:
            old = state["identity"]
            differ = [name for name in self.identity if old.get(name) != self.identity[name]]
            raise DumpError(
                f"{path} holds the tables of another dump or of other settings (it differs in "
                f"{', '.join(differ)}): choose another folder, or delete this one."
            )
        self.parts: int = state.get("parts", 0)
        self.finished: bool = state.get("finished", False)
        self.rows: Counter[str] = Counter(state.get("rows", {}))
        self.skipped: Counter[str] = Counter(state.get("skipped", {}))

    def seen(self) -> Seen:
        """The items that have rows in the parts."""
        seen, parquet = Seen(), load("pyarrow.parquet")
        for name, key in (("entities", "id"), ("triples", "head")):
            for part in range(self.parts):
                with parquet.ParquetFile(self.path / f"{name}-{part:05}.parquet") as file:
                    for batch in file.iter_batches(columns=[key]):
                        seen.again(batch.column(0).unique().to_pylist())
        return seen

    def add_part(self, rows: Rows) -> None:
        """Write the next pair of parts, and then that it is there."""
        for name, schema in zip(("entities", "triples"), schemas(), strict=True):
            batches = getattr(rows, name)
            _write_parquet(self.path / f"{name}-{self.parts:05}.parquet", batches, schema)
            self.rows[name] += sum(len(batch) for batch in batches)
        self.parts += 1
        self.rows.update(rows.counts)
        self.skipped.update(rows.skipped)
        self._save()

    def finish(self, truncated: bool) -> None:
        """All parts are there."""
        from ..bench.cells import write_json

        if truncated:
            self.skipped["truncated archive"] += 1
        self.finished = True
        write_json(self.path / "counts.json", self.summary())
        self._save()

    def summary(self) -> dict[str, Any]:
        names = ("items", "statements", "entities", "triples")
        counts = {name: self.rows[name] for name in names}
        return {**counts, "skipped": dict(sorted(self.skipped.items()))}

    def _save(self) -> None:
        from ..bench.cells import write_json

        state = {
            "identity": self.identity,
            "parts": self.parts,
            "rows": dict(self.rows),
            "skipped": dict(self.skipped),
            "finished": self.finished,
        }
        write_json(self.path / "done.json", state)


def _write_parquet(path: Path, batches: list[Any], schema: Any) -> None:
    """Write a table that is there as a whole or not at all."""
    table = load("pyarrow").Table.from_batches(batches, schema)
    scratch = path.with_name(f".{path.name}.part")
    with scratch.open("wb") as file:
        load("pyarrow.parquet").write_table(table, file, compression="zstd")
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


def _fill(folder: Folder, path: Path, language: str, jobs: int, progress: bool) -> None:
    """Write the parts that are still missing."""
    size, per_part = folder.identity["chunk"], folder.identity["chunks_per_part"]
    # Decompression is about half of all work, so that threads and workers share the cores.
    with Dump(path, threads=jobs) as dump, _bar(dump, progress) as bar:
        chunks = dump.chunks(size)
        for _ in islice(chunks, folder.parts * per_part):  # decompressed again, but not parsed
            bar.update(dump.archive.position() - bar.n)
        part, items, start, seen = Rows(), 0, time.monotonic(), folder.seen()
        for number, rows in enumerate(_parsed(chunks, language, jobs), start=1):
            if again := seen.again(rows.items):
                rows.drop(again)
            part.add(rows)
            items += rows.counts["items"]
            speed = items / (time.monotonic() - start)
            bar.set_postfix_str(f"{speed:,.0f} items/s", refresh=False)
            bar.update(dump.archive.position() - bar.n)
            if number % per_part == 0:
                folder.add_part(part)
                part = Rows()
        if part.entities or not folder.parts:  # at least one part, be it empty
            folder.add_part(part)
    if dump.truncated:
        LOG.warning(
            "%s is cut off or damaged (%s): the tables have what comes before.",
            path,
            dump.archive.problem or 'its last line is not "]"',
        )
    folder.finish(dump.truncated)


def _bar(dump: Dump, progress: bool) -> tqdm[Any]:
    """Of the compressed bytes read."""
    return tqdm(
        total=dump.archive.size,
        desc="extract",
        unit="B",
        unit_scale=True,
        disable=not progress,
    )
