"""What a run of the benchmark is asked for, and the cells that follow from it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..dafnet_hparams import nearest, shipped
from ..files import DamagedFile, read_yaml, reason_of
from .cells import (
    FORMAT,
    PROTOCOL,
    Cell,
    RunFolder,
    cell_from,
    read_json,
    without_paths,
    write_json,
)
from .data import KNOWN_FILES, data_names

_ENDINGS = (".json", ".jsonl", ".csv")  # of files of records
_FILE_NAME = re.compile(r"[\w.+=-]+")


class SuiteError(ValueError):
    """The settings of a run are wrong; the message says which and what to do."""


@dataclass(frozen=True)
class MethodEntry:
    """A method with its settings, under the label that the results carry.

    num_edits, streams: instead of the suite's, so that slow methods get fewer. train: instead of
    the suite's, to compare what is learnt from which records.
    """

    name: str
    label: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    num_edits: tuple[int, ...] | None = None
    streams: Mapping[int, int] | int | None = None
    train: tuple[str, ...] | None = None

    @classmethod
    def read(cls, entry: Any) -> MethodEntry:
        if isinstance(entry, str):
            entry = {"name": entry}
        if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
            raise SuiteError(
                f"methods: {entry!r} is no method; give a name, or {{name: ROME, label: "
                "ROME-15, settings: {v_num_grad_steps: 15}, num_edits: [1, 10]}."
            )
        _check_keys("methods", entry, cls)
        label = str(entry.get("label", entry["name"]))
        _check_name("methods", label)
        settings = entry.get("settings", {})
        if not isinstance(settings, Mapping):
            raise SuiteError(f"methods: the settings of {label} are {settings!r}, not names.")
        return cls(
            entry["name"],
            label,
            dict(settings),
            _numbers("num_edits", entry["num_edits"]) if "num_edits" in entry else None,
            _streams(entry["streams"]) if "streams" in entry else None,
            tuple(map(str, _list("train", entry["train"]))) if "train" in entry else None,
        )

    def to_mapping(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value not in (None, {})}


@dataclass(frozen=True)
class Suite:
    """The settings of a run, named as in the suites' files and on the command line.

    model: folder, hub name, or "smollm2". data: files by the names that the results carry; without
    a file it is a set that the benchmark knows, looked for in the folders of data_dir.
    streams: a number for all lengths, or one for each; lengths not named get 1.
    single_edits: records in a cell of N = 1. text: a file of plain text ("": the embedded one).
    train: files or names of records for methods that are trained, looked for as data is.
    perplexity_passages: how many passages measure perplexity; 0 for none. capability: tasks of
    lm-evaluation-harness, names or files; capability_limit: questions of each, 0 for all.
    """

    model: str = "smollm2"
    data: Mapping[str, str] = field(default_factory=lambda: {"facts": ""})
    data_dir: tuple[str, ...] = (".",)
    methods: tuple[MethodEntry, ...] = ()
    num_edits: tuple[int, ...] = (1, 10, 100, 1000)
    streams: Mapping[int, int] | int = 3
    batch_size: int = 1
    single_edits: int = 25
    seed: int = 0
    text: str = ""
    train: tuple[str, ...] = ()
    perplexity_passages: int = 20
    device: str = "cpu"
    dtype: str = "float32"
    capability: tuple[str, ...] = ()
    capability_limit: int = 100

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Suite:
        """From names and values as YAML gives them. Raises SuiteError."""
        _check_keys("the suite", given, cls)
        values: dict[str, Any] = {}
        for name, value in given.items():
            match name:
                case "data":
                    values[name] = _data(value)
                case "methods":
                    values[name] = _methods(value)
                case "num_edits":
                    values[name] = _numbers(name, value)
                case "streams":
                    values[name] = _streams(value)
                case "batch_size" | "single_edits":
                    values[name] = _number(name, value, 1)
                case "seed" | "perplexity_passages" | "capability_limit":
                    values[name] = _number(name, value, 0)
                case "train" | "capability" | "data_dir":
                    values[name] = tuple(map(str, _list(name, value)))
                case _:
                    values[name] = "" if value is None else str(value)
        if values.get("dtype", "float32") not in ("float32", "float16", "bfloat16"):
            raise SuiteError(
                f"dtype is {values['dtype']!r}; it must be float32, float16 or bfloat16."
            )
        return cls(**values)

    def absolute(self, folder: Path) -> Suite:
        """With absolute paths of files; relative ones are in the folder."""

        def absolute(path: str) -> str:
            return str((folder / Path(path).expanduser()).absolute()) if path else path

        def sources(train: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(t if t in {*data_names(), *KNOWN_FILES} else absolute(t) for t in train)

        model = Path(self.model).expanduser()
        return replace(
            self,
            model=str(model.absolute()) if model.is_dir() else self.model,
            data={name: absolute(path) for name, path in self.data.items()},
            data_dir=tuple(map(absolute, self.data_dir)),
            text=absolute(self.text),
            methods=tuple(
                replace(m, train=sources(m.train)) if m.train is not None else m
                for m in self.methods
            ),
            train=sources(self.train),
            capability=tuple(absolute(t) if Path(t).suffix else t for t in self.capability),
        )

    def to_mapping(self) -> dict[str, Any]:
        """What `read` makes the same suite of."""
        return asdict(self) | {"methods": [method.to_mapping() for method in self.methods]}

    def plan(self, usable: Mapping[str, int]) -> tuple[list[Cell], dict[str, str]]:
        """The cells in the order in which they run, and why some streams cannot be drawn.

        usable: records by data set; those not named are left out. Short streams come first, so
        that every method has results early.
        """
        cells, too_long = [], {}
        for method in self.methods:
            for length in method.num_edits or self.num_edits:
                streams = self.streams if method.streams is None else method.streams
                count = streams if isinstance(streams, int) else streams.get(length, 1)
                for name in self.data:
                    if name not in usable:
                        continue
                    if length > usable[name]:
                        too_long[f"{name}, {length} edits"] = (
                            f"it has {usable[name]} usable records"
                        )
                        continue
                    cells += [Cell(length, s, name, method.label) for s in range(count)]
        order = {name: i for i, name in enumerate(self.data)}
        rank = {method.label: i for i, method in enumerate(self.methods)}
        cells.sort(key=lambda c: (c.num_edits, c.stream, order[c.data], rank[c.label]))
        return cells, too_long

    def edits(self, cell: Cell) -> int:
        return self.single_edits if cell.num_edits == 1 else cell.num_edits


# -- Reading --------------------------------------------------------------------------------------


def suite_file(name_or_path: str) -> Path:
    """A suite's file by path or by its shipped name."""
    home = shipped("suites")
    for candidate in (Path(name_or_path), home / f"{name_or_path}.yaml"):
        if candidate.is_file():
            return candidate
    raise SuiteError(
        f"There is no suite {name_or_path!r}: it is neither a file nor shipped; "
        + nearest(name_or_path, [path.stem for path in home.glob("*.yaml")])
    )


def read_suite_file(path: Path) -> dict[str, Any]:
    try:
        content = read_yaml(path)
    except DamagedFile as error:
        raise SuiteError(str(error)) from None
    if not isinstance(content, dict):
        raise SuiteError(f"{path} must hold settings such as `methods: [FT, ROME]`.")
    try:
        Suite.read(content)
    except SuiteError as error:
        raise SuiteError(f"{path}: {error}") from None
    return content


def _check_keys(where: str, given: Mapping[str, Any], kind: type) -> None:
    known = [f.name for f in fields(kind)]
    for name in given:
        if name not in known:
            raise SuiteError(f"{where} has no setting {name!r}; {nearest(str(name), known)}")


def _check_name(where: str, name: str) -> None:
    if not _FILE_NAME.fullmatch(name) or name.startswith("."):
        raise SuiteError(
            f"{where}: {name!r} names files, so it may only have letters, digits and _ . + = -."
        )


def _list(name: str, value: Any) -> list[Any]:
    """One text stands for a list of it."""
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    if not isinstance(value, (list, tuple)):
        raise SuiteError(f"{name} is {value!r}; it must be a list.")
    return list(value)


def _number(name: str, value: Any, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise SuiteError(f"{name} is {value!r}; it must be a whole number of at least {least}.")
    return value


def _numbers(name: str, value: Any) -> tuple[int, ...]:
    values = value if isinstance(value, (list, tuple)) else [value]
    return tuple(sorted({_number(name, number, 1) for number in values}))


def _streams(value: Any) -> Mapping[int, int] | int:
    if isinstance(value, Mapping):
        return {
            # JSON's keys are texts.
            _number("streams", int(n) if str(n).isdigit() else n, 1): _number("streams", count, 0)
            for n, count in value.items()
        }
    return _number("streams", value, 1)


def _data(value: Any) -> dict[str, str]:
    if isinstance(value, Mapping):
        sets = {str(name): str(path or "") for name, path in value.items()}
    else:
        sets = {}
        for entry in _list("data", value):
            name, _, path = str(entry).partition("=")
            if Path(str(entry)).is_file():
                name, path = Path(entry).stem, str(entry)
            elif not path and ("/" in name or Path(name).suffix in _ENDINGS):
                raise SuiteError(f"data: there is no file {name!r}.")
            if name in sets:
                raise SuiteError(f"data: two sets are called {name!r}; name them: one={path}.")
            sets[name] = path
    for name in sets:
        _check_name("data", name)
    return sets


def _methods(value: Any) -> tuple[MethodEntry, ...]:
    entries = [MethodEntry.read(entry) for entry in _list("methods", value)]
    labels = [entry.label for entry in entries]
    for label in labels:
        if labels.count(label) > 1:
            raise SuiteError(f"methods: two are called {label!r}; give one another label.")
    return tuple(entries)


# -- The run's folder -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """What suite.json holds: the plan of all commands on one folder, and what it rests on.

    common: what results of one folder must have in common. data: by name, the source and what
    identifies the records; methods: by label, the suite's entries. left_out: reasons by what is not
    in the plan. asked: the last command's settings.
    """

    common: Mapping[str, Any]
    data: Mapping[str, Mapping[str, Any]]
    methods: Mapping[str, Mapping[str, Any]]
    cells: tuple[Cell, ...]
    left_out: Mapping[str, str]
    asked: Mapping[str, Any]
    command: str = ""

    @classmethod
    def load(cls, folder: RunFolder) -> Run | None:
        """None when nothing has run in the folder.

        Raises SuiteError or DamagedFile, which name the file, for another format or a damaged one.
        """
        content = read_json(folder.suite)
        if content is None:
            return None
        if (content.get("format"), content.get("protocol")) != (FORMAT, PROTOCOL):
            raise SuiteError(
                f"{folder.suite} is of format {content.get('format')}, protocol "
                f"{content.get('protocol')!r}; this version writes format {FORMAT}, protocol "
                f"{PROTOCOL!r}. Choose another --out."
            )
        try:
            parts = {f.name: content[f.name] for f in fields(cls)}
            run = cls(**parts | {"cells": tuple(map(cell_from, content["cells"]))})
            for name in ("common", "data", "methods", "left_out", "asked"):
                if not isinstance(content[name], dict):
                    raise ValueError(f"{name} is no object")
            Suite.read(run.everything())
        except (LookupError, AttributeError, TypeError, ValueError) as error:
            raise SuiteError(
                f"{folder.suite} is damaged ({reason_of(error)}); put it right, or choose "
                "another --out."
            ) from None
        return run

    def save(self, folder: RunFolder) -> None:
        plan = [
            {"data": c.data, "method": self.methods[c.label]["name"]} | asdict(c)
            for c in self.cells
        ]
        content = {f.name: getattr(self, f.name) for f in fields(self)} | {"cells": plan}
        write_json(folder.suite, {"format": FORMAT, "protocol": PROTOCOL, **content})

    def everything(self) -> dict[str, Any]:
        """What `Suite.read` takes, with the methods and data of all commands."""
        sets = {name: entry["path"] for name, entry in self.data.items()}
        asked = [f.name for f in fields(MethodEntry)]
        methods = [{n: v for n, v in m.items() if n in asked} for m in self.methods.values()]
        return {**self.asked, "methods": methods, "data": sets}

    def merge(self, older: Run, folder: RunFolder) -> Run:
        """The plan of both. Raises SuiteError when their results could not stand side by side."""
        path = folder.suite
        changeable = {label for label in older.methods if not folder.has_begun(label)}
        pairs: list[tuple[str, Any, Any]] = [
            (name, older.common.get(name), value) for name, value in self.common.items()
        ]
        for kind, old, new in (
            ("data set", older.data, self.data),
            ("method", older.methods, self.methods),
        ):
            pairs += [
                (f"{kind} {name}", _identity(old[name]), _identity(new[name]))
                for name in new
                if name in old and not (kind == "method" and name in changeable)
            ]
        for name, before, now in pairs:
            # A published run has no machine's paths, and a folder may have moved.
            before, now = without_paths(before), without_paths(now)
            if before != now:
                raise SuiteError(
                    f"{path} was made with another {name}: {_difference(before, now)}. "
                    "Results of both cannot be in one folder: choose another --out."
                )
        methods = {**older.methods, **self.methods}
        data = {**older.data, **self.data}
        return replace(
            self,
            data=data,
            methods=methods,
            cells=tuple(_in_order([*older.cells, *self.cells], [*older.methods, *self.methods])),
            left_out={
                name: reason
                for name, reason in {**older.left_out, **self.left_out}.items()
                if name in self.left_out or name not in {**methods, **data}
            },
        )


def _identity(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What results rest on. A data set may lie elsewhere today; its records tell."""
    kept = {k: v for k, v in entry.items() if k not in ("path", "num_edits", "streams", "note")}
    return json.loads(json.dumps(kept, default=str))


def _difference(before: Any, now: Any) -> str:
    """`1, now 2`, and for settings the first that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        name = next(n for n in (*now, *before) if before.get(n) != now.get(n))
        return f"{name} {_difference(before.get(name), now.get(name))}"
    return f"{_short(before)}, now {_short(now)}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 100 else f"{text[:100]}…"


def _in_order(cells: Iterable[Cell], labels: Iterable[str]) -> list[Cell]:
    rank = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    unique = dict.fromkeys(cells)
    return sorted(unique, key=lambda c: (c.num_edits, c.stream, rank[c.label]))
