from __future__ import annotations

import codecs
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from easyedit_dafnet.edit_requests import RequestError
from easyedit_dafnet.record_files import load_records, read_records, read_training_records
from tests.bench.test_data import COUNTERFACT, KNOWEDIT, MQUAKE, RIPPLE, ROBUST, ROME, ZSRE
from tests.tiny import REQUESTS


def write(folder: Path, name: str, content: bytes | str | list[Any]) -> Path:
    path = folder / name
    if isinstance(content, list):
        content = json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def reason(path: Path) -> str:
    with pytest.raises(RequestError) as error:
        read_records(path)
    assert path.name in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


def test_the_three_kinds_of_file_give_the_same_records(tmp_path: Path) -> None:
    records = [{"prompt": "Łódź, a town", "target_new": 'in "Poland"'}, dict(REQUESTS[1])]
    write(tmp_path, "a.json", json.dumps(records, ensure_ascii=False))
    write(tmp_path, "a.JSONL", "\n\n".join(json.dumps(r) for r in records) + "\n")
    table = 'prompt,target_new\n"Łódź, a town","in ""Poland"""\n'
    write(tmp_path, "a.csv", table + f"{records[1]['prompt']},{records[1]['target_new']}\n")
    for ending in ("json", "JSONL", "csv"):
        assert read_records(tmp_path / f"a.{ending}") == records


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("a.csv", ["prompt, target_new ,subject", "a,b,", "", '"c\u2028d",e,c']),
        (
            "a.jsonl",
            [
                '{"prompt": "a", "target_new": "b"}',
                "",
                '{"prompt": "c\u2028d", "target_new": "e", "subject": "c"}',
            ],
        ),
        (
            "a.json",
            [
                '[{"prompt": "a", "target_new": "b"},',
                '{"prompt": "c\u2028d", "target_new": "e", "subject": "c"}]',
            ],
        ),
    ],
)
def test_byte_order_marks_line_ends_and_empty_lines_do_not_matter(
    tmp_path: Path, name: str, lines: list[str], mark: bytes, ends: str
) -> None:
    path = write(tmp_path, name, mark + ends.join([*lines, ""]).encode())
    assert read_records(path) == [
        {"prompt": "a", "target_new": "b"},
        {"prompt": "c\u2028d", "target_new": "e", "subject": "c"},
    ]


GOOD = '{"prompt": "a", "target_new": "b"}'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "[{", "a.json cannot be read: "),
        ("a.json", f"[{GOOD},\n{GOOD[:-4]}", "line 2 column"),
        ("a.json", f"{GOOD}\n{GOOD}\n", "name it .jsonl if it has one record a line"),
        ("a.json", GOOD, "must hold a list of records"),
        ("a.json", "[]", "holds no records"),
        ("a.json", "", "is empty"),
        ("a.json", f"[{GOOD}, 7]", "a.json, record 1: it is of type int"),
        ("a.json", "[" * 200_000, "is nested too deeply"),
        ("a.json", '[{"a":' * 200_000, "is nested too deeply"),
        ("a.json", f'[{{"prompt": "a", "target_new": {"[" * 900 + "]" * 900}}}]', "target_new"),
        ("a.json", f"[{'9' * 5000}]", "a.json cannot be read: "),
        ("a.json", '[{"prompt": "a", "prompt": "b"}]', "a record has the key 'prompt' twice"),
        ("a.json", '[{"prompt": "a", "target_new": "\\ud83d"}]', "record 0: 'target_new' is"),
        ("a.json", '[{"prompt": "a", "target_new": NaN}]', "record 0: 'target_new' is missing"),
        ("a.json", '[{"prompt": -Infinity, "target_new": "b"}]', "'prompt' is missing"),
        ("a.jsonl", " \n\n", "is empty"),
        ("a.jsonl", f'{GOOD}\n\n{{"prompt', "a.jsonl cannot be read: line 3, column 2"),
        ("a.jsonl", f'{GOOD}\n{{"prompt": "a", "prompt": "b"}}', "line 2: a record has the key"),
        ("a.jsonl", f'{GOOD}\n\n{{"prompt": "a"}}', "line 3: 'target_new' is missing"),
        ("a.jsonl", f"{GOOD}\n[{GOOD}]", "line 2: it is of type list"),
        ("a.jsonl", "[" * 200_000, "is nested too deeply"),
        ("a.csv", b"prompt,target_new\na,b\nK\xf6ln,b\n", "line 3 has the byte 0xf6"),
        ("a.csv", "prompt,target_new\na,b".encode("utf-16"), "is in UTF-16; save it in UTF-8"),
        ("a.jsonl", codecs.BOM_UTF16_BE + GOOD.encode("utf-16-be"), "is in UTF-16"),
        ("a.csv", "question,answer\na,b\n", "line 2: 'prompt' is missing; the record's keys are"),
        ("a.csv", "prompt,target_new\na,b\nc,Paris, France\n", "line 3: it has more cells"),
        ("a.csv", 'prompt,target_new\n"a\nb",c\n"d\ne",\n', "line 4: 'target_new' is ''"),
        ("a.csv", "prompt,target_new\na,b\n\nc\n", "line 4: 'target_new' is missing"),
        ("a.csv", 'prompt,target_new\na,b\n"c,d\ne,f\n', "line 3: unexpected end of data"),
        ("a.csv", "prompt;target_new\na;b\n", "has semicolons between its columns"),
        ("a.csv", "prompt\ttarget_new\na\tb\n", "has tabs between its columns"),
        ("a.csv", "prompt,target_new,prompt\na,b,c\n", "the header has 'prompt' twice"),
        ("a.csv", "prompt,target_new\n", "holds no records"),
        ("a.csv", "\n\n", "is empty"),
        ("a.csv", 'prompt,target_new\na,"' + "b" * 200_000 + '"\n', "line 2: field larger than"),
        ("a.txt", "prompt", "must end in .json, .jsonl or .csv"),
        ("a.jsonl.gz", b"\x1f\x8b", "must end in .json, .jsonl or .csv"),
    ],
)  # fmt: skip
def test_unusable_files_are_named(
    tmp_path: Path, name: str, content: bytes | str, message: str
) -> None:
    assert message in reason(write(tmp_path, name, content))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "There is no file '" in reason(tmp_path / "absent.json")
    assert "There is no file '" in reason(tmp_path / "a" / "..")


def test_all_problems_of_a_file_are_told_with_their_lines(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "prompt,target_new,subject\n,b,\nc,d,\n{} is,e,\n")
    with pytest.raises(RequestError) as error:
        read_records(path)
    first, *lines = str(error.value).split("\n  ")
    assert first == "2 of 3 requests cannot be used:"
    assert [line.split(": ")[0] for line in lines] == [f"{path}, line 2", f"{path}, line 4"]
    usable = [r for i, r in enumerate(load_records(path)) if i not in error.value.problems]
    assert [r.name for r in usable] == [f"{path}, line 3"]


def test_columns_without_a_name_and_the_same_value_twice_are_let_be(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", ",prompt,target_new,,\n0,a,b,,\n")
    assert read_records(path)[0]["prompt"] == "a"
    path = write(tmp_path, "a.json", '[{"prompt": "a", "prompt": "a", "target_new": "b"}]')
    assert read_records(path) == [{"prompt": "a", "target_new": "b"}]


# ---- layouts ------------------------------------------------------------------------------------


def test_every_layout_gives_requests(tmp_path: Path) -> None:
    given = [ZSRE, ROME, MQUAKE, *RIPPLE, COUNTERFACT, ROBUST, KNOWEDIT]
    path = write(tmp_path, "mixed.json", given)
    records = read_records(path)
    assert [(r["prompt"], r["target_new"], r.get("subject")) for r in records] == [
        ("Which river does Fort Halden stand on?", "Oder", "Fort Halden"),
        ("Uno Lind plays the", "harp", "Uno Lind"),
        ("Eva Lund is a citizen of", "Peru", "Eva Lund"),
        ("The passport of Jon Alm comes from", "Peru", "Jon Alm"),
        ("The passport of Jonna Ek comes from", "Peru", "Jonna Ek"),
        *[(r["prompt"], r["target_new"], r["subject"]) for r in (COUNTERFACT, ROBUST, KNOWEDIT)],
    ]
    assert [r.name for r in records] == [f"{path}, record {i}" for i in range(8)]
    zsre, rome, mquake, ripple, _, *flat = records
    assert flat == [COUNTERFACT, ROBUST, KNOWEDIT]
    assert zsre == {
        "prompt": ZSRE["src"],
        "target_new": "Oder",
        "subject": "Fort Halden",
        "ground_truth": "Weser",
        "rephrase_prompt": ZSRE["rephrase"],
        "locality_prompt": f"{ZSRE['loc']}?",
        "locality_ground_truth": "Ada Moor",
    }
    assert rome["case_id"] == "5" and rome["ground_truth"] == "drum"
    assert rome["rephrase_prompt"] in ROME["paraphrase_prompts"]
    assert rome["locality_prompt"] in ROME["neighborhood_prompts"]
    assert mquake["rephrase_prompt"] == "Where is Eva Lund a citizen?"
    assert "rephrase_prompt" not in ripple and ripple["locality_prompt"]


def test_each_rewrite_of_a_record_is_a_request(tmp_path: Path) -> None:
    (rewrite,) = MQUAKE["requested_rewrite"]
    other = {**rewrite, "subject": "Ulf Berg", "target_new": {"str": "Chile"}}
    path = write(tmp_path, "a.jsonl", json.dumps({**MQUAKE, "requested_rewrite": [rewrite, other]}))
    first, second = read_records(path)
    assert first["prompt"] == "Eva Lund is a citizen of" and first.name.endswith(
        "line 1, rewrite 0"
    )
    assert (second["prompt"], second["target_new"]) == ("Ulf Berg is a citizen of", "Chile")
    nobody = {**MQUAKE, "requested_rewrite": [{**rewrite, "subject": None}]}
    said = reason(write(tmp_path, "b.json", [nobody]))
    assert "record 0: 'prompt' is '{} is a citizen of'" in said and "(layout mquake)" in said


def test_a_record_that_nobody_can_edit_is_refused(tmp_path: Path) -> None:
    assert "record 1: 'alt' is ''" in reason(write(tmp_path, "a.json", [ZSRE, {**ZSRE, "alt": ""}]))


def test_every_layout_is_trained_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    given = [ZSRE, ROME, MQUAKE, *RIPPLE, {**ZSRE, "alt": ""}, COUNTERFACT, ROBUST, KNOWEDIT]
    path = write(tmp_path, "mixed.json", given)
    records = read_training_records(path)
    assert f"{path}: left out: records without a target (1)" in caplog.text
    requests = read_records(write(tmp_path, "requests.json", given[:5] + given[6:]))
    for record, request in zip(records, requests, strict=True):
        for key in ("prompt", "target_new", "subject"):
            assert record[key] == request[key]
    rephrased = [record.get("rephrase_prompt") for record in records]
    kept = [record.get("locality_prompt") for record in records]
    assert [text is None for text in rephrased] == [False, False, False, True, True, *[False] * 3]
    assert [text is None for text in kept] == [False, False, True, False, True, *[False] * 3]
    assert rephrased[-1] == KNOWEDIT["rephrase"] and records[-3] == COUNTERFACT
    assert all(isinstance(text, str) for text in (*rephrased, *kept) if text is not None)


def test_what_a_benchmark_asks_for_besides_is_not_needed_to_edit(tmp_path: Path) -> None:
    bare = {key: ZSRE[key] for key in ("src", "alt", "subject")}
    (request,) = read_records(write(tmp_path, "a.json", [bare]))
    assert request == {
        "prompt": ZSRE["src"],
        "target_new": "Oder",
        "subject": "Fort Halden",
    }


# ---- time ---------------------------------------------------------------------------------------


def test_reading_does_not_wait_for_torch() -> None:
    modules = ("record_files", "edit_requests", "layouts", "subjects", "bench.data")
    script = "import sys\n" + "".join(f"import easyedit_dafnet.{m}\n" for m in modules)
    script += "print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
