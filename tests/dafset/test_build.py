from __future__ import annotations

import bz2
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from easyedit_dafnet.bench.data import load_data
from easyedit_dafnet.bridge import load_easyeditor
from easyedit_dafnet.dafnet_hparams import DAFNetTrainingHparams
from easyedit_dafnet.dafset.build import Settings, build
from easyedit_dafnet.dafset.dataset import DATA_SET, PROPERTIES
from easyedit_dafnet.files import MARK, OutputError, mark_folder
from easyedit_dafnet.record_files import read_records
from easyedit_dafnet.trainer import DAFNetTrainer
from tests.dafset.wikidata import claim, dumped, item
from tests.tiny import LLAMA_MODULES, tiny_llama

COUNTRIES = ("Avaria", "Belonia", "Cordava", "Drenland", "Estovia", "Farland")
CITIES = [f"{a}{b}" for a in ("Nor", "Sud", "Ost", "Wes", "Mar") for b in ("ton", "burg", "vik")]
FIRST = ("Anna", "Boris", "Clara", "David", "Erika", "Felix", "Greta", "Hugo", "Irma", "Jonas")
LAST = ("Almgren", "Brandt", "Costa", "Dufour", "Eriksen", "Fontana", "Gruber", "Hansen")


def people() -> list[str]:
    return [f"{first} {last}" for last in LAST for first in FIRST]


def world() -> list[dict[str, Any]]:
    """Countries 1.., cities 101.., people 1001..; a person's number tells where all is."""
    found = [item(5, "human"), item(6, "city"), item(7, "country")]
    for i, name in enumerate(COUNTRIES):
        claims = [claim("P31", 7), claim("P36", 101 + i)]
        found.append(item(11 + i, name, claims=claims))
    for i, name in enumerate(CITIES):
        claims = [claim("P31", 6), claim("P17", 11 + i % len(COUNTRIES))]
        found.append(item(101 + i, name, claims=claims))
    for i, name in enumerate(people()):
        claims = [
            claim("P31", 5),
            claim("P19", 101 + i * 7 % len(CITIES)),
            claim("P27", 11 + i % len(COUNTRIES)),
        ]
        found.append(
            item(
                1001 + i,
                name,
                claims=claims,
                modified=f"2026-10-{1 + i % 28:02}T12:00:00Z",
                sitelinks={"enwiki": {"site": "enwiki", "title": name}},
                aliases={"en": [{"language": "en", "value": f"Dr. {name}"}]},
            )
        )
    return found


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    (folder / "dump.json.bz2").write_bytes(bz2.compress(dumped(world())))
    views = [f"en {name.replace(' ', '_')} {i * i} 0" for i, name in enumerate(people())]
    (folder / "pageviews").write_text("\n".join(views) + "\n")
    (folder / "corpus.txt").write_text(" and ".join(people()[:40] * 3))
    return folder


def settings(sources: Path, **changes: Any) -> Settings:
    return Settings(
        dump=str(sources / "dump.json.bz2"),
        views=(str(sources / "pageviews"),),
        text=(str(sources / "corpus.txt"),),
        records=20,
        views_quantile=0.5,
        frequency_quantile=0.5,
        degree_quantile=0.9,
        jobs=1,
        **changes,
    )


@pytest.fixture(scope="module")
def built(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "dafset"
    build(settings(sources), out, "easyedit-dafnet dafset build")
    return out


def files(out: Path) -> dict[str, bytes]:
    names = [f"{name}.json" for name in PROPERTIES] + ["dafset.jsonl"]
    return {name: (out / name).read_bytes() for name in names}


def records(out: Path, name: str) -> list[dict[str, Any]]:
    return json.loads((out / f"{name}.json").read_text())


def test_each_property_is_what_it_says(built: Path) -> None:
    numbers = {name: 1001 + i for i, name in enumerate(people())}
    for record in records(built, "recent"):
        assert record["stats"]["modified"] > "2026-10-21"
        assert record["target_new"] == record["ground_truth"] and not record["counterfactual"]
    views = {name: i * i for i, name in enumerate(people())}
    least = json.loads((built / "build.json").read_text())["thresholds"]["views"]
    assert 35**2 <= least <= 45**2  # the median of those who may be edited
    for record in records(built, "popular"):
        assert record["stats"]["views"] == views[record["subject"]] >= least
        assert record["counterfactual"] and record["target_new"] != record["ground_truth"]
        # Of the right kind: people are not born in countries.
        assert (record["target_new"] in CITIES) == (record["ground_truth"] in CITIES)
    for record in records(built, "long_tail"):
        assert record["stats"]["frequency"] == 0 and not record["counterfactual"]
    for record in records(built, "robust"):
        assert len(record["prefix"]) >= 5 and record["counterfactual"]
        if record["opposite"]:
            assert record["opposite"]["ground_truth"] == record["ground_truth"]
    assert any(record["opposite"] for record in records(built, "robust"))
    for name in PROPERTIES:
        found = records(built, name)
        assert 5 <= len(found) <= 20, name
        for record in found:
            assert record["property"] == name
            if record["subject"] in numbers:
                assert record["wikidata"]["head"] == f"Q{numbers[record['subject']]}"


def test_facts_are_those_of_the_dump(built: Path) -> None:
    for name in PROPERTIES:
        for record in records(built, name):
            i = people().index(record["subject"]) if record["subject"] in people() else None
            if i is not None and record["relation"] == "P27":
                assert record["ground_truth"] == COUNTRIES[i % len(COUNTRIES)]
            elif i is not None:
                assert record["ground_truth"] == CITIES[i * 7 % len(CITIES)]


def test_nothing_edited_is_asked_for_as_a_neighbour(built: Path) -> None:
    found = [record for name in PROPERTIES for record in records(built, name)]
    edited = {record["subject"] for record in found}
    for record in found:
        assert not any(name in record["locality_prompt"] for name in edited if " " in name)
    prompts = [record["prompt"] for record in found]
    assert len(set(prompts)) == len(prompts)


def test_the_files_agree_and_say_what_made_them(built: Path) -> None:
    lines = [json.loads(line) for line in (built / "dafset.jsonl").read_text().splitlines()]
    assert lines == [record for name in PROPERTIES for record in records(built, name)]
    made = json.loads((built / "build.json").read_text())
    for name in PROPERTIES:
        assert made["counts"][name] == len(records(built, name))
    assert made["counts"]["items"] == len(world())
    assert made["thresholds"]["views"] > 0 and made["seed"] == 0
    assert len(made["dump"]["sha256"]) == 64 and made["dump"]["date"] == "2026-10-28"


def test_the_same_seed_gives_the_same_files(built: Path, sources: Path, tmp_path: Path) -> None:
    build(settings(sources), tmp_path / "again")
    assert files(tmp_path / "again") == files(built)
    build(settings(sources, seed=1), tmp_path / "other")
    assert files(tmp_path / "other") != files(built)


def test_what_is_excluded_does_not_occur(built: Path, sources: Path, tmp_path: Path) -> None:
    popular = records(built, "popular")
    subject, prompt = popular[0]["subject"], records(built, "recent")[0]["prompt"]
    judged = [
        {"prompt": "Who is it?", "target_new": "x", "subject": subject.upper()},
        {"prompt": prompt.lower(), "target_new": "x", "subject": "somebody else"},
    ]
    for record in judged:
        record |= {"rephrase_prompt": "?", "locality_prompt": "?", "locality_ground_truth": "x"}
    (tmp_path / "judged.json").write_text(json.dumps(judged))
    exclude = (str(tmp_path / "judged.json"),)
    made = build(settings(sources, exclude=exclude), tmp_path / "out")
    text = (tmp_path / "out/dafset.jsonl").read_text()
    found = [json.loads(line) for line in text.splitlines()]
    assert subject not in {record["subject"] for record in found}
    assert prompt not in {record["prompt"] for record in found}
    assert made["excluded"] == {
        "files": ["judged.json"],
        "subjects": 1,
        "facts": 2,
        "prompts": 1,
    }


def test_other_settings_do_again_what_they_change(sources: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(settings(sources), out)
    times = {p.name: p.stat().st_mtime_ns for p in out.glob("*/*.parquet")}
    build(replace(settings(sources), records=5), out)
    kept = {p.name for p in out.glob("*/*.parquet") if times[p.name] == p.stat().st_mtime_ns}
    assert {"entities-00000.parquet", "views.parquet", "frequency.parquet"} <= kept
    assert "facts.parquet" not in kept
    assert len(records(out, "recent")) == 5


def test_a_killed_build_goes_on(built: Path, sources: Path, tmp_path: Path) -> None:
    """At a moment in each of its stages."""
    out = tmp_path / "out"
    code = (
        "import sys; from pathlib import Path; from easyedit_dafnet.dafset.build import *; "
        f"build(Settings(**{settings(sources).__dict__!r}), Path(sys.argv[1]))"
    )
    for reached in ("signals/views.parquet", "select/candidates.parquet", "select/robust.parquet"):
        run = subprocess.Popen(
            [sys.executable, "-c", code, str(out)],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        end = time.monotonic() + 300
        while not (out / reached).exists():
            assert run.poll() is None and time.monotonic() < end
            time.sleep(0.005)
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    build(settings(sources), out)
    assert files(out) == files(built)


def test_the_facts_of_this_package_need_no_download(tmp_path: Path) -> None:
    made = build(Settings(records=30), tmp_path / "out")
    assert made["counts"]["recent"] == 0  # they have no times of modification
    found = [records(tmp_path / "out", name) for name in ("popular", "long_tail", "robust")]
    assert [len(of_property) for of_property in found] == [30, 30, 30]
    asked = {record["relation"] for of_property in found for record in of_property}
    assert {"P17", "P30", "P37", "P38", "P131"} <= asked


def test_a_folder_may_change_its_source(built: Path, sources: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(settings(sources), out)
    own = build(Settings(records=10), out)
    assert own["dump"]["name"].startswith("the facts") and own["counts"]["popular"] == 10
    assert records(out, "popular")[0]["wikidata"]["head"].startswith("facts:")
    build(settings(sources), out)
    assert files(out) == files(built)


def test_excluded_subjects_are_found_whatever_their_letters(tmp_path: Path) -> None:
    """Where Python's casefold would write ß as ss, the engines do not."""
    (tmp_path / "dump.json").write_bytes(street())
    judged = {"prompt": "?", "target_new": "x", "subject": "GROßFELD", "rephrase_prompt": "?"}
    judged |= {"locality_prompt": "?", "locality_ground_truth": "x"}
    (tmp_path / "judged.json").write_text(json.dumps([judged]))
    plain = Settings(dump=str(tmp_path / "dump.json"), jobs=1, frequency_quantile=1.0)
    plain = replace(plain, degree_quantile=1.0)
    found = build(plain, tmp_path / "all")
    assert found["counts"]["candidates"] == 40
    made = build(replace(plain, exclude=(str(tmp_path / "judged.json"),)), tmp_path / "out")
    assert made["excluded"]["subjects"] == 1


def test_a_neighbour_with_an_answer_of_the_same_name_is_no_neighbour(tmp_path: Path) -> None:
    """Two items called Avaria: citizens of the one say nothing of an edit about the other."""
    found = [item(1, "Avaria"), item(2, "Avaria")]
    for i, name in enumerate(people()[:40]):
        found.append(item(100 + i, name, claims=[claim("P27", 1 + i % 2)]))
    (tmp_path / "dump.json").write_bytes(dumped(found))
    made = build(
        Settings(dump=str(tmp_path / "dump.json"), jobs=1, degree_quantile=1.0), tmp_path / "out"
    )
    assert made["left_out"]["its neighbour's answer is called as its own"] > 0
    assert (tmp_path / "out/dafset.jsonl").read_text() == ""


def street() -> bytes:
    """Villages of two countries; one is called Großfeld."""
    found = [item(1 + i, name) for i, name in enumerate(COUNTRIES[:2])]
    for i in range(40):
        name = "Großfeld" if i == 7 else f"Village {'abcdefghij'[i % 10]}{'klmn'[i // 10]}"
        found.append(item(100 + i, name, claims=[claim("P17", 1 + i % 2)]))
    return dumped(found)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"views_quantile": 2.0}, "--views-quantile must be from 0 to 1"),
        ({"records": 0}, "--records is 0; it must be above zero"),
        ({"before": "2026-31-12"}, "--before is '2026-31-12'"),
        ({"engine": "duck"}, "--engine is 'duck'"),
        ({"text": ("nothing.txt",)}, "There is no file 'nothing.txt'"),
    ],
)
def test_what_would_fail_after_hours_is_told_at_once(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(told)):
        Settings(**wrong)


def test_two_builds_do_not_share_a_folder(tmp_path: Path) -> None:
    mark_folder(tmp_path / "out", DATA_SET)  # by the one that holds the lock
    with FileLock(tmp_path / "out/.lock"), pytest.raises(ValueError, match="Another build"):
        build(Settings(records=5), tmp_path / "out")


def test_a_model_tells_what_it_does_not_expect(
    sources: Path, tmp_path: Path, subjects: Any
) -> None:
    llama = subjects("llama")
    folder = tmp_path / "model"
    llama.model().save_pretrained(folder)
    llama.tok.save_pretrained(folder)
    made = build(settings(sources, model=str(folder)), tmp_path / "out")
    found = records(tmp_path / "out", "long_tail")
    most = made["thresholds"]["log_likelihood"]
    assert found and all(record["stats"]["log_likelihood"] <= most < 0 for record in found)
    assert made["model"] == {"name": "model"}


def test_a_dump_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises((FileNotFoundError, ValueError), match=r"nothing\.json"):
        build(Settings(dump=str(tmp_path / "nothing.json")), tmp_path / "out")


@pytest.mark.parametrize("name", [f"{name}.json" for name in PROPERTIES] + ["dafset.jsonl"])
def test_the_files_are_read_where_records_are_used(built: Path, name: str) -> None:
    trained = read_records(built / name)
    judged = load_data(built / name)
    assert len(trained) == len(judged) > 0
    for record, edit in zip(trained, judged, strict=True):
        assert (edit.prompt, edit.target_new) == (record["prompt"], record["target_new"])
        assert set(record["rephrase_prompts"]) <= set(edit.rephrases)
        assert any(record["locality_prompt"] == p.prompt for p in edit.locality["neighborhood"])
        asked = {kind for kind, probes in record["portability"].items() if probes}
        assert set(edit.portability) == asked


def test_the_trainer_takes_the_files(built: Path, tmp_path: Path) -> None:
    hparams = DAFNetTrainingHparams(
        model_name=str(tiny_llama(tmp_path / "tiny-llama", max_position_embeddings=256)),
        inner_params=LLAMA_MODULES,
        device="cpu",
        results_dir=str(tmp_path / "results"),
        layer_n=1,
        inner_att_dim=8,
        ffn_dim=8,
        outer_att_dim=8,
        outer_score_att_dim=4,
        outer_score_att_head_n=1,
        outer_att_head_n=1,
        max_iters=1,
        val_interval=1,
        passages=None,
    )
    data = {name: read_records(built / f"{name}.json") for name in PROPERTIES}
    trainer = DAFNetTrainer(hparams, data, data["robust"])
    trainer.run()
    robust, drawn = data["robust"], trainer.train_sets["robust"]
    assert "prefix" not in drawn[0]
    pairs = list(zip(robust, drawn, strict=True))
    assert all(d["rephrase_prompt"].endswith(tuple(r["rephrase_prompts"])) for r, d in pairs)
    assert any(d["rephrase_prompt"] not in r["rephrase_prompts"] for r, d in pairs), "prefixed"


def test_easyedits_data_set_reads_the_files(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # EasyEdit writes logs/ into the working folder
    try:
        load_easyeditor()
    except ImportError as error:
        pytest.skip(str(error))
    from easyeditor import CounterFactDataset

    for name in PROPERTIES:
        dataset = CounterFactDataset(str(built / f"{name}.json"))
        expected = records(built, name)
        assert len(dataset) == len(expected)
        for theirs, ours in zip(dataset, expected, strict=True):
            assert {key: theirs[key] for key in ("prompt", "target_new", "rephrase_prompt")} == {
                key: ours[key] for key in ("prompt", "target_new", "rephrase_prompt")
            }


def test_spark_builds_the_same_data_set(
    built: Path, sources: Path, tmp_path: Path, spark: Any
) -> None:
    """`spark` is the session that the engine then finds running."""
    build(settings(sources, engine="local[1]"), tmp_path / "out")
    assert files(tmp_path / "out") == files(built)


def test_a_folder_with_other_content_is_left_as_it_is(sources: Path, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# my project")
    (tmp_path / "build.json").write_text('{"format": 1}')
    with pytest.raises(OutputError, match=r"it holds README.md, build.json.* is not a data set"):
        build(settings(sources), tmp_path)
    assert (tmp_path / "README.md").read_text() == "# my project"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md", "build.json"]


def test_a_data_set_may_be_built_again_where_it_is(built: Path, tmp_path: Path) -> None:
    copied = tmp_path / "dafset"  # as it is shared: without hidden files and tables
    copied.mkdir()
    for file in built.iterdir():
        if file.is_file() and not file.name.startswith("."):
            shutil.copy(file, copied)
    mark_folder(copied, DATA_SET)
    assert not (copied / MARK).exists()
    assert (built / MARK).is_file(), "an interrupted build is known by it"
    (copied / "build.json").unlink()
    with pytest.raises(OutputError, match="is not a data set"):
        mark_folder(copied, DATA_SET)
