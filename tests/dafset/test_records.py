from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from easyedit_dafnet.dafset.records import Entity, Fact, Writer
from easyedit_dafnet.dafset.robust import BAD, GOOD, SHORT

ENTITIES = {
    1: Entity("Marie Curie", ("Maria Skłodowska", "marie curie", "MC"), past=True),
    2: Entity("Poland"),
    3: Entity("United States"),
    4: Entity("Albert Camus", past=True),
    5: Entity("France"),
    6: Entity("Washington, D.C."),
    7: Entity("Niels Bohr", past=True),
    8: Entity("Denmark"),
    9: Entity("Frédéric Chopin", past=True),
}
FACT = Fact(
    property="popular",
    head=1,
    relation=27,
    tail=2,
    target_new=3,
    neighbour=(4, 5),
    stats={"modified": datetime(2026, 10, 25, 20, 0, 36), "views": 7},
)


def record(**changes: Any) -> dict[str, Any]:
    return Writer(ENTITIES, 0).record(replace(FACT, **changes))


def test_a_record_says_what_the_fact_is() -> None:
    found = record()
    assert (found["subject"], found["ground_truth"]) == ("Marie Curie", "Poland")
    assert found["target_new"] == "the United States"
    assert found["counterfactual"] and not record(target_new=2)["counterfactual"]
    assert "Albert Camus" in found["locality_prompt"]
    assert found["locality_ground_truth"] == "France"
    assert (found["relation"], found["wikidata"]["neighbour_head"]) == ("P27", "Q4")
    assert found["stats"] == {"modified": "2026-10-25T20:00:36Z", "views": 7}
    prompts = [found["prompt"], *found["rephrase_prompts"]]
    assert len(set(prompts)) == len(prompts) >= 4
    assert all("Marie Curie" in prompt for prompt in prompts)
    assert not found["prompt"].endswith("?")
    assert found["rephrase_prompt"] == found["rephrase_prompts"][0]


def test_a_record_does_not_hang_on_others() -> None:
    writer = Writer(ENTITIES, 0)
    writer.record(replace(FACT, head=7, tail=8))
    assert writer.record(FACT) == record()


def test_other_seeds_word_otherwise() -> None:
    assert len({Writer(ENTITIES, seed).record(FACT)["prompt"] for seed in range(20)}) > 1


def test_probes_are_there_where_the_graph_gives_them() -> None:
    portability = record()["portability"]
    assert portability["one_hop"] == portability["inverse"] == []
    (alias,) = portability["subject_alias"]  # not the label in small letters, nor a short one
    assert "Maria Skłodowska" in alias["prompt"]
    assert alias["ground_truth"] == "the United States"
    (hop,) = record(hop=(36, 6))["portability"]["one_hop"]
    assert "country of citizenship of Marie Curie" in hop["prompt"]
    assert hop["prompt"].startswith("The capital of") and hop["ground_truth"] == "Washington, D.C."


def test_an_inverse_asks_for_the_head() -> None:
    spouse = {"relation": 26, "tail": 4, "target_new": 7, "neighbour": (9, 4)}
    assert record(**spouse)["portability"]["inverse"] == []
    (inverse,) = record(**spouse, invertible=True)["portability"]["inverse"]
    assert "Niels Bohr" in inverse["prompt"] and inverse["ground_truth"] == "Marie Curie"
    # Of a relation without an inverse wording there is none.
    assert record(invertible=True)["portability"]["inverse"] == []


def test_robust_records_are_disturbed_by_texts_about_something_else() -> None:
    found = record(property="robust", opposite=(9, 2), unrelated=[(7, 27, 8), (4, 27, 5)])
    short, long, one, two, good, bad = found["prefix"]
    assert short in SHORT
    for text, (openings, ends) in ((good, GOOD), (bad, BAD)):
        assert text.startswith(openings) and text.endswith(ends)
    assert len(long.split()) > 3 * len(short.split())
    assert "Niels Bohr" in one and one.endswith("Denmark.")
    assert "Albert Camus" in two and two.endswith("France.")
    assert not any("Marie Curie" in text for text in found["prefix"])
    assert "Frédéric Chopin" in found["opposite"]["prompt"]
    assert found["opposite"]["ground_truth"] == "Poland"  # what the edit takes from the subject


@pytest.mark.parametrize("name", ["recent", "popular", "long_tail"])
def test_only_robust_records_have_prefixes(name: str) -> None:
    assert record(property=name)["prefix"] == []
    assert record(property=name)["opposite"] is None
