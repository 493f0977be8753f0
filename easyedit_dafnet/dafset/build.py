"""Builds a data set: sources -> tables -> selected facts -> records.

Each stage has its folder, and what made it is noted beside it: a build that was interrupted, or is
repeated with other settings, does a stage again only where something that it rests on is another.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, timezone
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .. import __version__
from ..bench.cells import read_json, without_paths, write_json
from ..files import mark_folder, write_text
from . import engines, select
from .card import write_card
from .dataset import DATA_SET, FORMAT, PROPERTIES, prompts_of
from .embedded import write_tables
from .exclude import Excluded, folded
from .extract import extract
from .frequency import count_names
from .packages import load
from .records import Entity, Fact, Writer
from .views import read_views
from .wording import RELATIONS, RELATIONS_FILE, Name, follows

SPARE = 3
"""So many times more facts are drawn than wanted, where later steps leave some out."""

FOLLOWS = [
    (inner.id, outer.id)
    for inner in RELATIONS.values()
    for outer in RELATIONS.values()
    if follows(outer, inner)
]

UNRELATED = 2
"""Facts about something else before a robust record's question."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a data set is made of, and how its facts are chosen.

    dump: a Wikidata JSON dump; None: the facts that come with this package. views: Wikimedia's
    page-view files; text: a corpus for the frequency of names; model: folder or hub name of the
    language model to be edited, for likelihoods. Without one of them, what it tells counts as equal
    for all. exclude: evaluation sets whose subjects and prompts must not occur.

    records: of each property at most; per_relation: of these, of one relation. before: ISO time,
    the end of the window of recent changes; None: the newest change of a fact to choose from.
    engine: duckdb, or Spark's master such as local[*] or spark://host:7077. memory_gb: of DuckDB.
    """

    dump: str | None = None
    views: tuple[str, ...] = ()
    text: tuple[str, ...] = ()
    model: str | None = None
    exclude: tuple[str, ...] = ()
    language: str = "en"
    records: int = 5000
    per_relation: int | None = None
    window_days: int = 7
    before: str | None = None
    views_quantile: float = 0.9
    hub: int = 1000
    frequency_quantile: float = 0.3
    degree_quantile: float = 0.3
    likelihood_quantile: float = 0.5
    several_answers: bool = False
    seed: int = 0
    engine: str = "duckdb"
    memory_gb: float = 0.9
    jobs: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Raises ValueError or FileNotFoundError: what would fail after hours is told at once."""
        shares = ("views_quantile", "frequency_quantile", "degree_quantile", "likelihood_quantile")
        for name in shares:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name.replace('_', '-')} must be from 0 to 1.")
        for name in ("records", "per_relation", "window_days", "hub", "memory_gb", "jobs"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be above zero.")
        for file in (*self.views, *self.text, *([self.dump] if self.dump else [])):
            if not Path(file).is_file():
                raise FileNotFoundError(f"There is no file {file!r}; check its name and folder.")
        if self.engine != "duckdb" and not self.engine.startswith(("local", "spark://", "yarn")):
            raise ValueError(
                f"--engine is {self.engine!r}; it must be duckdb or a Spark master such as "
                "local[*] or spark://host:7077."
            )
        _time(self.before)


# What of the settings says where or how fast, and not what comes out.
_HOW = {"dump", "views", "text", "exclude", "engine", "memory_gb", "jobs", "device"}


def build(settings: Settings, out: Path, command: str = "") -> dict[str, Any]:
    """Build the data set in `out`; returns what build.json holds.

    Files: recent.json, popular.json, long_tail.json, robust.json, dafset.jsonl with all of them,
    build.json and README.md; the folders extract, signals and select hold the tables. Raises
    OutputError where the folder holds something else than a data set.
    """
    return _Builder(settings, out, command).run()


class _Builder:
    def __init__(self, settings: Settings, out: Path, command: str) -> None:
        self.settings, self.out, self.command = settings, out, command
        # A folder for each source, as that of a dump is not to be written over.
        self.tables = out / ("facts" if settings.dump is None else "extract")
        self.signals, self.select = out / "signals", out / "select"

    def run(self) -> dict[str, Any]:
        from filelock import FileLock, Timeout

        excluded = Excluded.read(self.settings.exclude)  # first: a bad file is named at once
        mark_folder(self.out, DATA_SET)
        try:
            with FileLock(self.out / ".lock", timeout=0):
                return self.build(excluded)
        except Timeout:
            raise ValueError(
                f"Another build is at work in {self.out}: wait for it, or choose another --out."
            ) from None

    def build(self, excluded: Excluded) -> dict[str, Any]:
        settings = self.settings
        counts = self.extract()
        self.signal("views", settings.views, self.read_views)
        self.signal("frequency", settings.text, self.count_names)
        thresholds, numbers = self.choose(excluded)
        excluded_facts = numbers.pop("excluded")
        records, left_out = self.word(excluded)
        found = {
            "format": FORMAT,
            "command": without_paths(self.command),
            "dump": self.dump_facts(),
            "views": [_checksum(Path(f)) for f in settings.views],
            "text": [_checksum(Path(f)) for f in settings.text],
            "model": {"name": Path(settings.model).name} if settings.model else None,
            "seed": settings.seed,
            "settings": _what(settings),
            "thresholds": thresholds,
            "counts": {**counts, **numbers, **{p: len(r) for p, r in records.items()}},
            "excluded": {
                "files": [Path(f).name for f in settings.exclude],
                **excluded_facts,
                "prompts": left_out.pop("excluded prompt", 0),
            },
            "left_out": dict(left_out),
            "versions": _versions(),
        }
        self.write(records, found)
        return found

    # -- Tables ------------------------------------------------------------------------------------

    def extract(self) -> dict[str, Any]:
        settings = self.settings
        if settings.dump is None:
            return write_tables(self.tables)
        return extract(settings.dump, self.tables, settings.language, settings.jobs)

    def signal(self, name: str, files: Sequence[str], work: Callable[[Path], Any]) -> None:
        """signals/NAME.parquet, made again where the files are others."""
        path = self.signals / f"{name}.parquet"
        made_from = [FORMAT, *map(_identity, files), read_json(self.tables / "done.json")]
        _once(path, made_from, lambda: work(path))

    def read_views(self, path: Path) -> None:
        inside = self.tables / "views.parquet"  # of the facts that come with the package
        if self.settings.views:
            read_views(self.settings.views, path, self.settings.language)
        elif self.settings.dump is None:
            load("pyarrow.parquet").write_table(load("pyarrow.parquet").read_table(inside), path)
        else:
            _write_empty(path, title="string", views="int64")

    def count_names(self, path: Path) -> None:
        if self.settings.text:
            count_names(self.settings.text, self.tables / "entities-*.parquet", path)
        else:
            _write_empty(path, id="int64", frequency="int64")

    # -- Selection ---------------------------------------------------------------------------------

    def choose(self, excluded: Excluded) -> tuple[dict[str, Any], dict[str, Any]]:
        """Write select/*.parquet; returns the thresholds and the numbers of facts."""
        path = self.select / "facts.parquet"
        model = None
        if self.settings.model is not None:
            # Only here: torch takes memory that a build without a model can spare.
            from ..bench.unedited_model import model_fingerprint, model_path

            model = model_fingerprint(model_path(self.settings.model))
        made_from = [
            FORMAT,
            __version__,
            sha256(RELATIONS_FILE.read_bytes()).hexdigest(),
            _what(self.settings),
            model,
            excluded.digest,
            *(read_json(self.signals / f"{n}.parquet.json") for n in ("views", "frequency")),
        ]
        return tuple(_once(path, made_from, lambda: self.choose_facts(excluded)))  # type: ignore[return-value]

    def choose_facts(self, excluded: Excluded) -> list[dict[str, Any]]:
        s = self.settings
        engine = (
            engines.duckdb_engine(self.out, s.memory_gb)
            if s.engine == "duckdb"
            else engines.spark_engine(s.engine)
        )
        tables = engines.open_tables(engine, self.tables, self.signals)
        entities = tables.entities.filter(select.usable(tables.entities.label))

        def keep(name: str, table: Any, order: Sequence[str] = select.KEY) -> Any:
            """Written and read again, so that what rests on it does not compute it again."""
            engines.write(table, self.select / f"{name}.parquet", order)
            return engines.read(engine, self.select / f"{name}.parquet")

        with tqdm(total=9, desc="select", unit="step") as bar:

            def step(name: str) -> None:
                bar.set_postfix_str(name)
                bar.update()

            found = select.candidates(
                entities,
                tables.triples,
                tables.views,
                tables.frequency,
                RELATIONS,
                s.several_answers,
            )
            found = select.sensible(found, tables.triples, RELATIONS)
            all_candidates = keep("candidates", found)
            total = all_candidates.count().execute()
            candidates = select.without_subjects(all_candidates, entities, excluded.subjects)
            left = candidates.count().execute()
            heads = [t["head"].nunique().execute() for t in (all_candidates, candidates)]
            editable = select.editable(candidates, s.seed)
            step("recent")
            before = _time(s.before) or all_candidates.modified.max().execute()
            chosen = {}
            if before is not None and str(before) != "NaT":
                fresh = select.recent(editable, before, s.window_days)
                chosen["recent"] = keep("recent", self.limit(fresh))
            step("popular")
            read = self.limit(select.popular_facts(editable, s.views_quantile), SPARE)
            untrue = select.counterfactual(
                keep("read", read), candidates, tables.triples, entities, s.hub, s.seed, keep
            )
            chosen["popular"] = keep("popular", self.limit(untrue))
            step("long tail")
            rare = select.long_tail_candidates(editable, s.frequency_quantile, s.degree_quantile)
            unknown, likelihood = self.unknown(engine, keep, rare, entities)
            chosen["long_tail"] = keep("long_tail", self.limit(unknown))
            step("robust")
            used = select.combine(chosen)
            rest = editable.anti_join(used, "head")
            rest = keep("rest", self.limit(rest, SPARE))
            untrue = select.counterfactual(
                rest, candidates, tables.triples, entities, s.hub, s.seed + 1, keep
            )
            chosen["robust"] = keep("robust", self.limit(untrue))
            step("neighbours")
            combined = keep("combined", select.combine(chosen))
            neighbours = select.neighbours(combined, candidates, s.seed)
            facts = keep("facts", neighbours)
            step("opposites")
            keep("opposites", select.opposites(facts, candidates, s.seed))
            step("hops")
            keep("hops", select.one_hop(facts, candidates, FOLLOWS, s.seed))
            inverse = [r.id for r in RELATIONS.values() if r.inverse]
            keep("inverse", select.inverse(facts, tables.triples, inverse))
            step("labels")
            self.labels(keep, entities, facts)
            heads_of = facts.select(id="head").distinct()
            keep("ambiguous", select.ambiguous(heads_of, tables.entities), ["id", "name"])
            thresholds: dict[str, Any] = select.thresholds(
                editable, s.views_quantile, s.frequency_quantile, s.degree_quantile
            )
            thresholds["log_likelihood"] = likelihood
            step("done")
        if before is not None and str(before) != "NaT":
            thresholds["modified"] = f"{before - timedelta(days=s.window_days):%Y-%m-%dT%H:%M:%SZ}"
        numbers = {
            "candidates": int(total),
            "excluded": {"subjects": int(heads[0] - heads[1]), "facts": int(total - left)},
        }
        return [thresholds, numbers]

    def limit(self, facts: Any, times: int = 1) -> Any:
        s = self.settings
        each = None if s.per_relation is None else times * s.per_relation
        return select.limit_each(facts, each, times * s.records, s.seed)

    def unknown(
        self, engine: Any, keep: Callable[..., Any], rare: Any, entities: Any
    ) -> tuple[Any, float | None]:
        """Of facts of rare heads those that the model does not expect, and its limit for that.

        Without a model all of them.
        """
        if self.settings.model is None:
            return rare.mutate(target_new=rare.tail), None
        rare = keep("rare", self.limit(rare, SPARE))
        ends = {end: entities.select("label", "past", **{end: "id"}) for end in ("head", "tail")}
        named = rare.select(*select.KEY).join(ends["head"], "head")
        named = named.join(ends["tail"].select("tail", target="label"), "tail")
        from .likelihood import score

        self.write_prompts(keep("named", named).to_pyarrow())
        folder = self.select / "likelihoods"
        score(self.select / "prompts.parquet", folder, self.settings.model, self.settings.device)
        likelihoods = engines.read(engine, folder / "likelihoods-*.parquet")
        unknown = select.long_tail(rare, likelihoods, self.settings.likelihood_quantile)
        most = unknown.log_likelihood.max().execute()
        return unknown, None if most is None or most != most else float(most)

    def write_prompts(self, named: Any) -> None:
        """The questions that the language model is asked: each fact's own prompt."""
        pa, pq = load("pyarrow"), load("pyarrow.parquet")
        writer = Writer({}, self.settings.seed)
        prompts = [
            writer.prompts(row["head"], row["relation"], Name(row["label"], row["past"]))[0]
            for row in named.to_pylist()
        ]
        table = named.select([*select.KEY, "target"]).append_column("prompt", pa.array(prompts))
        pq.write_table(table, self.select / "prompts.parquet")

    def labels(self, keep: Callable[..., Any], entities: Any, facts: Any) -> None:
        """Names of all entities that records speak of."""
        tables = [facts.select(id=n) for n in ("head", "tail", "target_new")]
        tables += [facts.select(id=n) for n in ("neighbour_head", "neighbour_tail")]
        opposites, hops = (
            engines.read(facts.get_backend(), self.select / f"{name}.parquet")
            for name in ("opposites", "hops")
        )
        tables += [opposites.select(id="opposite_head"), hops.select(id="tail2")]
        ids = tables[0].union(*tables[1:], distinct=True)
        wanted = entities.semi_join(ids, "id").select("id", "label", "aliases", "past")
        keep("labels", wanted, ["id"])

    # -- Words -------------------------------------------------------------------------------------

    def word(self, excluded: Excluded) -> tuple[dict[str, list[dict[str, Any]]], Counter[str]]:
        """The records by property, and how many facts were left out for which reason."""
        others_too = {(row["id"], row["name"]) for row in self.rows("ambiguous")}
        entities = {
            row["id"]: Entity(
                row["label"],
                tuple(a for a in row["aliases"] if (row["id"], a) not in others_too),
                row["past"],
            )
            for row in self.rows("labels")
        }
        writer = Writer(entities, self.settings.seed)
        edited = {folded(entities[row["head"]].label) for row in self.rows("facts")}
        records: dict[str, list[dict[str, Any]]] = {name: [] for name in PROPERTIES}
        seen: set[str] = set()
        left_out: Counter[str] = Counter()
        for fact in self.facts():
            record = writer.record(fact)
            asked = [fact.neighbour[0]]
            if record["opposite"] and fact.opposite:
                asked.append(fact.opposite[0])
            if any(folded(entities[head].label) in edited for head in asked):
                left_out["a namesake of its neighbour is edited"] += 1
            elif record["locality_ground_truth"] in (record["target_new"], record["ground_truth"]):
                left_out["its neighbour's answer is called as its own"] += 1
            elif record["prompt"] in seen or not seen.isdisjoint(record["rephrase_prompts"]):
                left_out["a namesake of its subject is edited"] += 1
            elif excluded.has_prompt(prompts_of(record)):
                left_out["excluded prompt"] += 1
            else:
                seen |= {record["prompt"], *record["rephrase_prompts"]}
                records[fact.property].append(record)
        return records, left_out

    def facts(self) -> Iterable[Fact]:
        """The selected facts with all that goes with them, in a fixed order."""
        rows = self.rows("facts")
        by_key = {
            name: {tuple(row[k] for k in select.KEY): row for row in self.rows(name)}
            for name in ("opposites", "hops", "inverse")
        }
        pool = [(row["neighbour_head"], row["relation"], row["neighbour_tail"]) for row in rows]
        for number, row in enumerate(rows):
            key = tuple(row[k] for k in select.KEY)
            opposite, hop = by_key["opposites"].get(key), by_key["hops"].get(key)
            taken = {row[name] for name in ("head", "tail", "target_new", "neighbour_head")}
            others = (pool[(number + k * 7919) % len(pool)] for k in range(1, 50))
            unrelated = [fact for fact in others if taken.isdisjoint((fact[0], fact[2]))]
            yield Fact(
                property=row["property"],
                head=row["head"],
                relation=row["relation"],
                tail=row["tail"],
                target_new=row["target_new"],
                neighbour=(row["neighbour_head"], row["neighbour_tail"]),
                opposite=(opposite["opposite_head"], row["tail"]) if opposite else None,
                hop=(hop["relation2"], hop["tail2"]) if hop else None,
                invertible=key in by_key["inverse"],
                unrelated=list(dict.fromkeys(unrelated))[:UNRELATED],
                stats={n: row[n] for n in ("modified", "views", "frequency", "degree")}
                | {"log_likelihood": row["log_likelihood"]},
            )

    def rows(self, name: str) -> list[dict[str, Any]]:
        return load("pyarrow.parquet").read_table(self.select / f"{name}.parquet").to_pylist()

    # -- Files -------------------------------------------------------------------------------------

    def write(self, records: Mapping[str, list[dict[str, Any]]], found: dict[str, Any]) -> None:
        for stale in ("build.json", "report.html"):  # of a build that this one takes the place of
            (self.out / stale).unlink(missing_ok=True)
        for name, of_property in records.items():
            write_text(self.out / f"{name}.json", _json(of_property, indent=1))
        lines = [_json(record) for of_property in records.values() for record in of_property]
        write_text(self.out / "dafset.jsonl", "".join(f"{line}\n" for line in lines))
        write_json(self.out / "build.json", found)
        write_card(self.out)

    def dump_facts(self) -> dict[str, Any]:
        newest: datetime | None = None
        for path in sorted(self.tables.glob("entities-*.parquet")):
            with load("pyarrow.parquet").ParquetFile(path) as file:
                for batch in file.iter_batches(columns=["modified"]):
                    last = load("pyarrow.compute").max(batch.column(0)).as_py()
                    newest = max(filter(None, (newest, last)), default=None)
        date = newest and f"{newest:%Y-%m-%d}"
        if self.settings.dump is None:
            return {"name": "the facts of easyedit_dafnet", "date": date}
        return {**_checksum(Path(self.settings.dump)), "date": date}


# -- Small things ----------------------------------------------------------------------------------


def _once(path: Path, made_from: Any, work: Callable[[], Any]) -> Any:
    """The work's result, from a note beside its file where it was done from the same before."""
    note = path.with_name(f"{path.name}.json")
    made_from = json.loads(json.dumps(made_from, default=str))
    known = read_json(note) if path.exists() else None
    if known is not None and known["made_from"] == made_from:
        return known["result"]
    note.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    result = work()
    write_json(note, {"made_from": made_from, "result": result})
    return result


def _identity(file: str) -> list[Any]:
    """Tells whether a file is still the same, without reading it."""
    path = Path(file)
    status = path.stat()
    return [path.name, status.st_size, status.st_mtime_ns]


def _what(settings: Settings) -> dict[str, Any]:
    kept = {k: v for k, v in asdict(settings).items() if k not in _HOW}
    return kept | {"model": Path(settings.model).name if settings.model else None}


def _checksum(path: Path) -> dict[str, Any]:
    digest = sha256()
    with (
        path.open("rb") as file,
        tqdm(
            total=path.stat().st_size, unit="B", unit_scale=True, desc="checksum", leave=False
        ) as bar,
    ):
        while block := file.read(1 << 22):
            digest.update(block)
            bar.update(len(block))
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _write_empty(path: Path, **columns: str) -> None:
    pa = load("pyarrow")
    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in columns.items()])
    load("pyarrow.parquet").write_table(schema.empty_table(), path)


def _time(text: str | None) -> datetime | None:
    """UTC, without a zone. Raises ValueError in one sentence."""
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text.removesuffix("Z"))
        return time.astimezone(timezone.utc).replace(tzinfo=None) if time.tzinfo else time
    except ValueError:
        raise ValueError(f"--before is {text!r}; give a date such as 2026-10-31.") from None


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _versions() -> dict[str, str]:
    names = ("duckdb", "ibis-framework", "pyarrow")
    return {"easyedit_dafnet": __version__, **{name: version(name) for name in names}}
