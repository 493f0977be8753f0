from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from easyedit_dafnet.bench.cells import OLDER_PROTOCOLS, Cell, RunFolder, write_json
from easyedit_dafnet.bench.data import KNOWN_FILES
from easyedit_dafnet.bench.options import SUITES
from easyedit_dafnet.bench.suite import (
    MethodEntry,
    Run,
    Suite,
    SuiteError,
    read_suite_file,
    suite_file,
)
from easyedit_dafnet.bridge import methods
from easyedit_dafnet.dafnet_hparams import shipped

SETTINGS: dict[str, Any] = {
    "data": {"zsre": "zsre.json", "cf": "cf.json"},
    "methods": [
        "FT",
        {"name": "ROME", "label": "ROME-5", "settings": {"steps": 5}, "num_edits": [1, 10]},
    ],
    "num_edits": [1, 10, 100],
    "streams": {1: 1, 10: 2, 100: 1},
}


def run_of(suite: Suite, **changes: Any) -> Run:
    cells, left_out = suite.plan(dict.fromkeys(suite.data, 50))
    run = Run(
        common={"seed": suite.seed, "batch_size": suite.batch_size},
        data={name: {"path": path, "digest": name} for name, path in suite.data.items()},
        methods={m.label: {"name": m.name, "settings": m.settings} for m in suite.methods},
        cells=tuple(cells),
        left_out=left_out,
        asked=suite.to_mapping(),
    )
    return replace(run, **changes)


def test_the_plan_has_short_streams_of_all_methods_first() -> None:
    cells, left_out = Suite.read(SETTINGS).plan({"zsre": 60, "cf": 200})
    assert [str(cell) for cell in cells] == [
        "zsre/FT/n1-s0",
        "zsre/ROME-5/n1-s0",
        "cf/FT/n1-s0",
        "cf/ROME-5/n1-s0",
        "zsre/FT/n10-s0",
        "zsre/ROME-5/n10-s0",
        "cf/FT/n10-s0",
        "cf/ROME-5/n10-s0",
        "zsre/FT/n10-s1",
        "zsre/ROME-5/n10-s1",
        "cf/FT/n10-s1",
        "cf/ROME-5/n10-s1",
        "cf/FT/n100-s0",
    ]
    assert left_out == {"zsre, 100 edits": "it has 60 usable records"}


def test_a_data_set_that_is_not_there_has_no_cells() -> None:
    cells, _ = Suite.read(SETTINGS).plan({"cf": 200})
    assert {cell.data for cell in cells} == {"cf"}


def test_a_method_may_have_streams_of_its_own() -> None:
    entry = {"name": "FT", "streams": {10: 3}, "num_edits": 10}
    cells, _ = Suite.read({"methods": [entry], "data": ["facts"], "streams": 1}).plan({"facts": 20})
    assert cells == [Cell(10, s, "facts", "FT") for s in range(3)]


def test_a_suite_survives_json() -> None:
    suite = Suite.read(SETTINGS)
    assert Suite.read(json.loads(json.dumps(suite.to_mapping()))) == suite


def test_data_is_named_by_the_user_or_by_its_file(tmp_path: Path) -> None:
    file = tmp_path / "cf-edit.json"
    file.touch()
    suite = Suite.read({"data": [str(file), "mine=a.json", "facts"]})
    assert suite.data == {"cf-edit": str(file), "mine": "a.json", "facts": ""}
    assert suite.absolute(tmp_path).data["mine"] == str(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_edit": [1]}, "the suite has no setting 'num_edit'; did you mean 'num_edits'?"),
        ({"num_edits": [10, 0]}, "num_edits is 0; it must be a whole number of at least 1."),
        ({"batch_size": "two"}, "batch_size is 'two'; it must be a whole number of at least 1."),
        ({"streams": {"ten": 1}}, "streams is 'ten'"),
        ({"dtype": "int8"}, "dtype is 'int8'; it must be float32, float16 or bfloat16."),
        ({"methods": [{"label": "FT"}]}, "methods: {'label': 'FT'} is no method"),
        ({"methods": [{"name": "FT", "step": 1}]}, "methods has no setting 'step'"),
        ({"methods": ["FT", "FT"]}, "two are called 'FT'; give one another label."),
        ({"methods": [{"name": "FT", "label": "a/b"}]}, "'a/b' names files"),
        ({"methods": [{"name": "FT", "settings": 3}]}, "the settings of FT are 3"),
        ({"methods": {"FT": {"settings": {}}}}, "methods is {'FT': {'settings': {}}}; it must be"),
        ({"data": 5}, "data is 5; it must be a list."),
        ({"data": ["a=1.json", "a=2.json"]}, "two sets are called 'a'"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SuiteError) as error:
        Suite.read(settings)
    assert message in str(error.value)


def test_the_shipped_suites_can_be_read() -> None:
    names = sorted(path.stem for path in shipped("suites").glob("*.yaml"))
    assert names == [
        "dafset-effect",
        "full",
        "paper",
        "quick",
        "same-subject",
        "smollm2-main",
        "smollm2-release",
    ]
    suites = {name: Suite.read(read_suite_file(suite_file(name))) for name in names}
    assert all(suite.methods and suite.data for suite in suites.values())
    assert set(suites) == set(SUITES.split(", ")), "help names them"
    for name in ("full", "paper"):
        labels = {method.label for method in suites[name].methods}
        assert {"unedited", "BFT", "DAFNet-published", "DAFNet-strong"} <= labels


def test_the_full_suite_has_every_method_and_data_set() -> None:
    full = Suite.read(read_suite_file(suite_file("full")))
    known = {method.name for method in (*methods.WRITTEN, *methods.WRITTEN_FOR_MAIN)}
    ours = {"unedited", "BFT", "DAFNet", "DAFNet-strong"}
    assert {method.name for method in full.methods} == known | ours
    parts_of_another = {"ripple_edits", "counterfact-train"}
    assert set(full.data) == {"facts", *KNOWN_FILES} - parts_of_another


def test_an_unknown_or_broken_suite_is_named(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match=r"no suite 'quik'.*did you mean 'quick'"):
        suite_file("quik")
    file = tmp_path / "own.yaml"
    file.write_text("methods: [")
    with pytest.raises(SuiteError, match=r"own\.yaml is not valid YAML"):
        read_suite_file(file)
    file.write_text("seed: none")
    with pytest.raises(SuiteError, match=r"own\.yaml: seed is 'none'"):
        read_suite_file(file)


def test_suite_json_keeps_the_plan(tmp_path: Path) -> None:
    folder, run = RunFolder(tmp_path), run_of(Suite.read(SETTINGS))
    assert Run.load(folder) is None
    run.save(folder)
    loaded = Run.load(folder)
    assert loaded is not None and loaded.cells == run.cells and loaded.common == run.common
    assert Suite.read(loaded.asked) == Suite.read(SETTINGS)
    content = json.loads(folder.suite.read_text())
    for other in ("score-at-once/0", *OLDER_PROTOCOLS):
        folder.suite.write_text(json.dumps(content | {"protocol": other}))
        with pytest.raises(SuiteError, match=f"protocol '{other}'; this version writes"):
            Run.load(folder)


@pytest.mark.parametrize(
    "damage",
    [
        lambda suite: [],
        lambda suite: {n: v for n, v in suite.items() if n != "asked"},
        lambda suite: {**suite, "asked": []},
        lambda suite: {**suite, "asked": {"sed": 1}},
        lambda suite: {**suite, "cells": 3},
        lambda suite: {**suite, "cells": [{"data": "cf"}]},
        lambda suite: {**suite, "data": {"cf": "path"}},
        lambda suite: {**suite, "data": {"cf": {}}},
        lambda suite: {**suite, "methods": {"FT": {}}},
        lambda suite: {**suite, "methods": []},
        lambda suite: {**suite, "common": 1},
    ],
)
def test_a_damaged_plan_is_one_sentence_with_its_name(tmp_path: Path, damage: Any) -> None:
    folder = RunFolder(tmp_path)
    run_of(Suite.read(SETTINGS)).save(folder)
    whole = folder.suite.read_text()
    folder.suite.write_text(json.dumps(damage(json.loads(whole))))
    with pytest.raises(ValueError, match=re.escape(str(folder.suite))) as error:
        Run.load(folder)
    assert "\n" not in str(error.value)
    folder.suite.write_text(whole[:-100])
    with pytest.raises(ValueError, match=r"suite\.json is damaged: it is not JSON"):
        Run.load(folder)


def test_the_plan_grows(tmp_path: Path) -> None:
    left_out = {"MEND": "no archive", "PMET": "no text", "cf": "no file", "ripple": "no file"}
    older = run_of(Suite.read(SETTINGS), left_out=left_out)
    more = Suite.read({**SETTINGS, "methods": ["MEND"], "data": ["cf=moved.json"], "streams": 3})
    both = run_of(more).merge(older, RunFolder(tmp_path))
    assert set(both.cells) == {*older.cells, *run_of(more).cells}
    assert list(both.methods) == ["FT", "ROME-5", "MEND"]
    assert both.data["cf"]["path"] == "moved.json"
    assert {name for name in both.left_out if "," not in name} == {"PMET", "ripple"}
    lengths = [cell.num_edits for cell in both.cells]
    assert lengths == sorted(lengths)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"common": {"seed": 0, "batch_size": 2}}, "another batch_size: 1, now 2"),
        ({"data": {"cf": {"digest": "other"}}}, "another data set cf"),
        ({"methods": {"FT": {"name": "FT", "settings": {"lr": 1}}}}, "another method FT"),
        ({"methods": {"FT": {"name": "FT", "host": "EasyEdit main"}}}, "method FT: host None, now"),
    ],
)
def test_results_that_could_not_be_compared_are_refused(
    changes: dict[str, Any], what: str, tmp_path: Path
) -> None:
    older, folder = run_of(Suite.read(SETTINGS)), RunFolder(tmp_path)
    write_json(folder.sanity("FT"), {})
    with pytest.raises(SuiteError) as error:
        replace(older, **changes).merge(older, folder)
    assert what in str(error.value) and "choose another --out" in str(error.value)


def test_a_method_may_change_until_it_has_begun(tmp_path: Path) -> None:
    older, folder = run_of(Suite.read(SETTINGS)), RunFolder(tmp_path)
    newer = replace(older, methods={"FT": {"name": "FT", "settings": {"lr": 1}}})
    assert newer.merge(older, folder).methods["FT"]["settings"] == {"lr": 1}
    with (
        folder.lock("label/FT"),  # as a worker holds it
        pytest.raises(SuiteError, match="another method FT: settings"),
    ):
        newer.merge(older, folder)
    assert newer.merge(older, folder).methods["FT"]["settings"] == {"lr": 1}
    write_json(folder.result(older.cells[0]), {})
    assert older.cells[0].label == "FT"
    with pytest.raises(SuiteError, match="another method FT: settings"):
        newer.merge(older, folder)


def test_a_run_goes_on_where_it_has_no_absolute_paths(tmp_path: Path) -> None:
    def with_projection(file: str) -> Run:
        run = run_of(Suite.read(SETTINGS))
        method = {"name": "FT", "effective": {"P_loc": file, "lr": 1}}
        return replace(run, methods={**run.methods, "FT": method})

    folder = RunFolder(tmp_path)
    write_json(folder.sanity("FT"), {})
    newer = with_projection("/home/me/run/prepared/projection.pt")
    newer.merge(with_projection("projection.pt"), folder)
    newer.merge(with_projection("/mnt/run/prepared/projection.pt"), folder)
    with pytest.raises(SuiteError, match=r"effective P_loc other\.pt, now projection\.pt"):
        newer.merge(with_projection("/home/me/run/prepared/other.pt"), folder)


def test_a_method_entry_is_written_as_it_was_read() -> None:
    given = {"name": "FT", "label": "FT-1", "streams": 2}
    assert MethodEntry.read(given).to_mapping() == given
