"""What a run needs and whether it is there, before anything runs."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from rich.table import Table

from .capability import check_tasks
from .cells import RunFolder
from .environment import host_version
from .materials import (
    DataSet,
    EvaluatedMissing,
    Passages,
    TrainingRecords,
    UnknownData,
    digest,
)
from .method import Need
from .registry import UnknownMethod, find_method, unavailable
from .suite import Run, Suite, SuiteError
from .unedited_model import model_fingerprint, model_path
from .worker import workbench


@dataclass
class Preflight:
    """needs, effective settings, hosts, notes: by method; sets: by name; reasons: why a method or
    a data set is left out. train: records to train on, by method, and by "" for all that have none
    of their own; trained_on: what identifies those of a method's own. untrained: why nothing can be
    trained."""

    suite: Suite
    train: dict[str, TrainingRecords] = field(default_factory=dict)
    trained_on: dict[str, str] = field(default_factory=dict)
    untrained: str = ""
    common: dict[str, object] = field(default_factory=dict)
    needs: dict[str, list[Need]] = field(default_factory=dict)
    effective: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    hosts: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    sets: dict[str, DataSet] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    @classmethod
    def check(
        cls, suite: Suite, folder: RunFolder, older: Run | None, typed: Container[str]
    ) -> Preflight:
        """Look at everything; raises ValueError, OSError or ImportError where nothing can run.

        older: what was run in the folder. typed: "methods" or "data" where the user named them: an
        unknown one is then an error; the suites name methods that some hosts lack.
        """
        text = Passages.load(suite)
        earlier = older.data if older else {}

        def evaluated() -> list[DataSet]:
            others = [name for name in earlier if name not in found.sets]
            sets = [DataSet.again(name, earlier[name], "", suite.data_dir) for name in others]
            return [*found.sets.values(), *sets]

        found = cls(suite)
        alike: dict[tuple[str, ...], TrainingRecords] = {}
        for label, sources in [("", suite.train), *((m.label, m.train) for m in suite.methods)]:
            if sources is not None:
                records = TrainingRecords(sources, suite.data_dir, evaluated)
                found.train[label] = alike.setdefault(sources, records)
        for name, path in suite.data.items():
            try:
                found.sets[name] = DataSet.find(name, path, suite.data_dir)
            except UnknownData as error:
                if "data" in typed:
                    raise SuiteError(f"data: {name!r}: {error}") from None
                found.reasons[name] = str(error)
            except (OSError, ValueError, ImportError) as error:
                found.reasons[name] = str(error)
        found.common = {
            "model": model_fingerprint(model_path(suite.model)),
            "device": suite.device.split(":")[0],
            "dtype": suite.dtype,
            "seed": suite.seed,
            "batch_size": suite.batch_size,
            "single_edits": suite.single_edits,
            "capability": list(suite.capability),
            "capability_limit": suite.capability_limit if suite.capability else 0,
            "text": text.name,
            "perplexity_passages": suite.perplexity_passages,
        }
        try:
            found.common["train"] = digest(list(found.train[""]))
        except EvaluatedMissing as error:  # methods that are trained are left out
            if older is None:
                raise
            found.common["train"] = older.common["train"]
            found.untrained = str(error)
        if suite.capability and importlib.util.find_spec("lm_eval") is None:
            raise ImportError(
                "--capability needs lm-evaluation-harness: "
                "pip install 'easyedit_dafnet[capability]'."
            )
        if suite.capability:
            check_tasks(suite.capability)
        bench = workbench(suite, folder, "", text, found.train[""])
        for method in suite.methods:
            try:
                factory = find_method(method.name)
            except UnknownMethod:
                if "methods" in typed:
                    raise
                host = host_version() or "Python without EasyEdit"
                found.reasons[method.label] = f"{host} has no method {method.name!r}"
                continue
            if reason := unavailable(method.name):
                found.reasons[method.label] = reason
                continue
            try:
                train = found.train.get(method.label, bench.train)
                own = replace(bench, folder=folder.prepared(method.label), train=train)
                made = factory(own, method.settings)
                needs = made.needs()
                if method.train is not None:
                    found.trained_on[method.label] = digest(list(train))
            except (OSError, ValueError, ImportError) as error:
                found.reasons[method.label] = str(error)
                continue
            except Exception as error:  # one method's settings, or its code, must not stop others
                found.reasons[method.label] = f"{type(error).__name__}: {error}"
                continue
            found.needs[method.label] = needs
            found.effective[method.label] = made.effective_settings
            found.hosts[method.label] = made.host
            found.notes[method.label] = made.note
            missing = [f"{n.what}: {n.detail}" for n in needs if n.state == "missing"]
            if missing:
                found.reasons[method.label] = "; ".join(missing)
        return found

    def run(self, command: str) -> Run:
        """What suite.json says of this command: all that is not left out."""
        methods = [m for m in self.suite.methods if m.label not in self.reasons]
        usable = {name: data.most_edits for name, data in self.sets.items()}
        cells, too_long = replace(self.suite, methods=tuple(methods)).plan(usable)
        return Run(
            common=self.common,
            data={name: data.describe() for name, data in self.sets.items()},
            methods={
                m.label: m.to_mapping()
                | {"effective": dict(self.effective[m.label])}
                | ({} if m.train is None else {"trained_on": self.trained_on[m.label]})
                | ({"host": self.hosts[m.label]} if self.hosts[m.label] else {})
                | ({"note": self.notes[m.label]} if self.notes[m.label] else {})
                for m in methods
            },
            cells=tuple(cells),
            left_out=self.reasons | too_long,
            asked=self.suite.to_mapping(),
            command=command,
        )

    def tables(self) -> Iterator[Table]:
        data = _table("Data", "data set", "records", "usable")
        for name in self.suite.data:
            if name in self.sets:
                found = self.sets[name]
                kept = len(found.records)
                note = f"{found.dropped} whose prompt lacks the subject" if found.dropped else ""
                data.add_row(name, str(kept + found.dropped), str(kept), note)
            else:
                data.add_row(name, "", "", f"left out: {self.reasons[name]}")
        for label, train in self.train.items():
            if train.sources and label not in self.reasons:
                what = f"to train {label} on" if label else "to train on"
                if self.untrained:
                    data.add_row(what, "", "", f"left out: {self.untrained}")
                    continue
                kept, left_out = len(train), train.left_out
                note = f"left out: {left_out} that are evaluated" if left_out else ""
                data.add_row(what, str(kept + left_out), str(kept), note)
        yield data
        methods = _table("Methods", "method", "needs", "")
        for method in self.suite.methods:
            needs = self.needs.get(method.label)
            if needs is None:
                methods.add_row(method.label, "", "left out", self.reasons[method.label])
            for i, need in enumerate(needs or ([Need("nothing", "ready")] if needs == [] else [])):
                label = "" if i else method.label
                state = "missing: left out" if need.state == "missing" else need.state
                methods.add_row(label, need.what, state, need.detail)
        yield methods


def _table(title: str, *columns: str) -> Table:
    """With a last column for reasons, which alone may take several lines."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, no_wrap=True)
    table.add_column(overflow="fold")
    return table


@contextlib.contextmanager
def quiet(folder: RunFolder) -> Iterator[None]:
    """What methods and hosts print while they are looked at goes to a log."""
    folder.logs.mkdir(parents=True, exist_ok=True)
    with (
        (folder.logs / "preflight.log").open("a", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        yield
