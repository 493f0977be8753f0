from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from easyedit_dafnet.dafset import select
from easyedit_dafnet.dafset.select import CANDIDATE, KEY
from easyedit_dafnet.dafset.wording import RELATIONS, usable_label
from tests.dafset.world import NOON, rows, world


def facts_of(engine: Any, folder: Path, tails: dict[int, tuple[int, int]], **world_has: Any) -> Any:
    """Candidates of the relation 1, or of other relations; by head: relation and tail."""
    entities = {i for head, (_, tail) in tails.items() for i in (head, tail)}
    triples = [(head, relation, tail) for head, (relation, tail) in tails.items()]
    tables = world(engine, folder, {i: f"<{i}>" for i in entities}, triples, **world_has)
    return select.candidates(*tables, {relation for relation, _ in tails.values()})


def test_a_degree_counts_triples_at_either_end(duckdb: Any, tmp_path: Path) -> None:
    tables = world(duckdb, tmp_path, {}, [(1, 5, 2), (1, 6, 2), (3, 5, 1), (4, 5, 4)])
    assert rows(select.degrees(tables.triples), "id", "degree") == [(1, 3), (2, 2), (3, 1), (4, 2)]


LABELS = {1: "Ann", 2: "Berlin", 3: "Bo of BERLIN", 4: "Cy", 5: "Bonn", 6: "Bonn Minster"}


@pytest.mark.parametrize(
    ("triples", "expected"),
    [
        pytest.param([(1, 19, 2)], [(1, 19, 2)], id="plain"),
        pytest.param([(1, 20, 2)], [], id="another relation"),
        pytest.param([(1, 19, 99)], [], id="tail without label"),
        pytest.param([(99, 19, 1)], [], id="head without label"),
        pytest.param([(1, 19, 1)], [], id="its own tail"),
        pytest.param([(3, 19, 2)], [], id="the answer is in the head, whatever its case"),
        pytest.param([(5, 19, 6)], [(5, 19, 6)], id="the head is in the answer"),
        pytest.param([(1, 19, 2), (1, 19, 5)], [], id="several answers"),
        pytest.param([(1, 19, 2), (1, 19, 99)], [], id="several answers, one without label"),
        pytest.param([(1, 19, 2), (1, 19, 2)], [(1, 19, 2)], id="stated twice"),
        pytest.param([(1, 19, 2), (1, 27, 5)], [(1, 19, 2), (1, 27, 5)], id="two relations"),
    ],
)
def test_candidates_are_facts_that_can_be_asked_for(
    duckdb: Any, tmp_path: Path, triples: list[Any], expected: list[Any]
) -> None:
    tables = world(duckdb, tmp_path, LABELS, triples)
    assert rows(select.candidates(*tables, [19, 27]), *KEY) == expected


def test_several_answers_are_candidates_where_wanted(duckdb: Any, tmp_path: Path) -> None:
    tables = world(duckdb, tmp_path, LABELS, [(1, 19, 2), (1, 19, 5), (1, 19, 5)])
    found = select.candidates(*tables, [19], several_answers=True)
    assert rows(found, *KEY) == [(1, 19, 2), (1, 19, 5)]


def test_candidates_say_what_is_known_of_the_head(duckdb: Any, tmp_path: Path) -> None:
    tables = world(
        duckdb,
        tmp_path,
        LABELS,
        [(1, 19, 2), (4, 19, 5), (1, 7, 99), (98, 7, 1)],
        views={1: 30, 2: 500},
        frequency={1: 4, 5: 600},
    )
    found = select.candidates(*tables, [19])
    assert tuple(found.columns) == CANDIDATE
    assert rows(found, *CANDIDATE) == [(1, 19, 2, NOON, 30, 4, 3), (4, 19, 5, NOON, 0, 0, 1)]


def test_recent_facts_are_of_heads_modified_in_the_window(duckdb: Any, tmp_path: Path) -> None:
    second = timedelta(seconds=1)
    modified: dict[int, datetime | None] = {
        1: NOON,
        2: NOON + second,
        3: NOON - timedelta(days=7) + second,
        4: NOON - timedelta(days=7),
        5: None,
    }
    facts = facts_of(duckdb, tmp_path, dict.fromkeys(modified, (1, 9)), modified=modified)
    found = select.recent(facts, NOON)
    assert rows(found, "head", "target_new") == [(1, 9), (3, 9)]
    found = select.recent(facts, NOON, window_days=1)
    assert rows(found, "head", "target_new") == [(1, 9)]


def test_popular_facts_are_of_heads_above_the_quantile_of_those_with_views(
    duckdb: Any, tmp_path: Path
) -> None:
    # Head 1 has two facts, and counts once: the median of 1, 1, 2, 3 is 1, of 1, 2, 3 it is 2.
    labels = {i: f"<{i}>" for i in range(1, 10)}
    triples = [(1, 19, 9), (1, 20, 9), (2, 19, 9), (3, 19, 9), *((i, 19, 9) for i in range(4, 9))]
    tables = world(duckdb, tmp_path, labels, triples, views={1: 1, 2: 2, 3: 3, 4: 0})
    facts = select.candidates(*tables, [19, 20])
    for quantile, heads in [(0.5, [2, 3]), (0, [1, 1, 2, 3]), (1, [3]), (0.34, [2, 3])]:
        found = select.popular_facts(facts, quantile)
        assert [head for (head,) in rows(found, "head")] == heads


# Ann (1) was born in Paris (10), Bo (2) in Rome (11); x (20) is linked to both.
BORN = [(1, 19, 10), (2, 19, 11)]
PLACES = {1: "Ann", 2: "Bo", 10: "Paris", 11: "Rome", 12: "Oslo"}


@pytest.mark.parametrize(
    ("more", "labels", "hub", "expected"),
    [
        pytest.param([(20, 5, 10), (20, 6, 11)], {}, 9, [(1, 11), (2, 10)], id="from one"),
        pytest.param([(10, 5, 20), (20, 6, 11)], {}, 9, [(1, 11), (2, 10)], id="either way"),
        pytest.param([(20, 5, 10)], {}, 9, [], id="nothing in common"),
        pytest.param([(10, 5, 11)], {}, 9, [], id="one hop"),
        pytest.param([(20, 5, 10), (20, 6, 11)], {}, 1, [], id="a hub"),
        pytest.param([(20, 5, 10), (20, 6, 12)], {}, 9, [], id="no tail of the relation"),
        pytest.param(
            [(20, 5, 10), (20, 6, 11)], {11: "Paris"}, 9, [], id="another of the same name"
        ),
        pytest.param(
            [(20, 5, 10), (20, 6, 11)], {1: "Ann of rome"}, 9, [(2, 10)], id="in the question"
        ),
        pytest.param(
            [(20, 5, 10), (20, 6, 11), (10, 31, 7), (11, 31, 8)], {}, 9, [], id="of other kinds"
        ),
        pytest.param(
            [(20, 5, 10), (20, 6, 11), (10, 31, 7), (10, 31, 8), (11, 31, 8)],
            {},
            9,
            [(1, 11), (2, 10)],
            id="with a kind in common",
        ),
        pytest.param(
            [(20, 5, 10), (20, 6, 11), (10, 31, 7)], {}, 9, [(1, 11), (2, 10)], id="of no kind"
        ),
        pytest.param(
            [(20, 5, 10), (20, 6, 11)], {11: "Paris by night"}, 9, [], id="called so in part"
        ),
        pytest.param([(20, 5, 10), (20, 6, 11), (10, 279, 11)], {}, 9, [], id="above the truth"),
        pytest.param([(20, 5, 10), (20, 6, 11), (11, 527, 10)], {}, 9, [], id="a part of it"),
        pytest.param(
            [(20, 5, 10), (20, 6, 11), (11, 131, 9), (9, 17, 10)], {}, 9, [], id="two steps above"
        ),
        pytest.param(
            [(20, 5, 10), (20, 6, 11), (11, 17, 9), (10, 17, 9)],
            {},
            9,
            [(1, 11), (2, 10)],
            id="of one country",
        ),
    ],
)
def test_a_counterfactual_target_is_near_the_truth(
    duckdb: Any,
    tmp_path: Path,
    more: list[Any],
    labels: dict[int, str],
    hub: int,
    expected: list[Any],
) -> None:
    views = {1: 5, 2: 5}
    tables = world(duckdb, tmp_path, {**PLACES, **labels}, [*BORN, *more], views=views)
    facts = select.candidates(*tables, [19])
    found = select.counterfactual(
        select.popular_facts(facts), facts, tables.triples, tables.entities, hub=hub
    )
    assert rows(found, "head", "target_new") == expected
    assert tuple(found.columns) == (*CANDIDATE, "target_new")


def test_a_counterfactual_target_is_no_other_name_of_the_truth(duckdb: Any, tmp_path: Path) -> None:
    labels = {**PLACES, 10: "Lutetia", 11: "Oslo"}
    triples = [*BORN, (20, 5, 10), (20, 6, 11)]
    tables = world(duckdb, tmp_path, labels, triples, aliases={11: ["Kristiania", "Lutetia"]})
    facts = select.candidates(*tables, [19])
    found = select.counterfactual(facts, facts, tables.triples, tables.entities)
    assert rows(found, "head") == []


def test_facts_are_about_heads_of_the_relations_kinds(duckdb: Any, tmp_path: Path) -> None:
    labels = {i: f"<{i}>" for i in range(1, 30)}
    person, city, unknown = 1, 2, 3
    kinds = [(person, 31, 5), (city, 31, 6)]
    born, capital = ([(head, p, 20) for head in (person, city, unknown)] for p in (19, 36))
    plays = [(person, 1303, 21), (unknown, 1303, 17172850)]
    labels[17172850] = "voice"
    tables = world(duckdb, tmp_path, labels, [*kinds, *born, *capital, *plays])
    facts = select.candidates(*tables, [19, 36, 1303])
    found = select.sensible(facts, tables.triples, {p: RELATIONS[p] for p in (19, 36, 1303)})
    assert rows(found, "head", "relation") == [
        *((person, 19), (person, 1303), (city, 36), (unknown, 19), (unknown, 36))
    ]


def test_aliases_of_others_as_well_are_ambiguous(duckdb: Any, tmp_path: Path) -> None:
    labels = {1: "Weimar Republic", 2: "Germany", 3: "Barbara Bush", 4: "Barbara Pierce Bush"}
    aliases = {
        1: ["germany", "Reich"],
        2: ["Deutschland"],
        3: ["Bar"],
        4: ["Bar", "Ms B"],
    }
    tables = world(duckdb, tmp_path, labels, [(1, 5, 2)], aliases=aliases)
    ids = tables.entities.filter(tables.entities.id.isin([1, 2, 4])).select("id")
    assert rows(select.ambiguous(ids, tables.entities), "id", "name") == [
        (1, "germany"),
        (4, "Bar"),
    ]


def test_a_subject_is_excluded_by_its_other_names_too(duckdb: Any, tmp_path: Path) -> None:
    labels = {1: "Jesus", 2: "Berlin", 3: "Ann"}
    triples = [(1, 19, 2), (3, 19, 2)]
    tables = world(duckdb, tmp_path, labels, triples, aliases={1: ["Jesus Christ"]})
    facts = select.candidates(*tables, [19])
    found = select.without_subjects(facts, tables.entities, ["jesus christ"])
    assert rows(found, "head") == [(3,)]


def test_a_counterfactual_target_is_no_other_true_tail_nor_the_head(
    duckdb: Any, tmp_path: Path
) -> None:
    # Ann has two places of birth; Rome (11) was "born" in Oslo, which shares x with Rome.
    triples = [*BORN, (1, 19, 11), (11, 19, 12), *((20, 5, i) for i in (10, 11, 12))]
    tables = world(duckdb, tmp_path, PLACES, triples)
    facts = select.candidates(*tables, [19], several_answers=True)
    found = select.counterfactual(facts, facts, tables.triples, tables.entities)
    targets = {(head, tail): new for head, tail, new in rows(found, "head", "tail", "target_new")}
    assert targets.keys() == {(1, 10), (1, 11), (2, 11), (11, 12)}
    assert targets[1, 10] == targets[1, 11] == 12
    assert targets[2, 11] in (10, 12)
    assert targets[11, 12] == 10


def test_another_seed_draws_other_targets(duckdb: Any, tmp_path: Path) -> None:
    heads, places = range(100, 120), range(200, 220)
    triples = [(h, 19, p) for h, p in zip(heads, places, strict=True)]
    labels = {i: f"<{i}>" for i in [*heads, *places]}
    tables = world(duckdb, tmp_path, labels, [*triples, *((20, 5, p) for p in places)])
    facts = select.candidates(*tables, [19])

    def targets(seed: int) -> list[Any]:
        found = select.counterfactual(facts, facts, tables.triples, tables.entities, seed=seed)
        return rows(found, "head", "target_new")

    assert len(targets(0)) == 20 and targets(0) == targets(0) != targets(1)


def test_long_tail_candidates_are_rare_in_text_and_graph(duckdb: Any, tmp_path: Path) -> None:
    # Heads 1 to 4: degrees 1, 1, 2, 3; frequencies 0, 5, 0, 0.
    triples = [(i, 1, 9) for i in (1, 2, 3, 4)] + [(3, 2, 8), (4, 2, 8), (4, 3, 8)]
    labels = {i: f"<{i}>" for i in range(1, 10)}
    tables = world(duckdb, tmp_path, labels, triples, frequency={2: 5})
    facts = select.candidates(*tables, [1])
    for frequency, degree, heads in [
        (0.75, 0.5, [1]),
        (1, 0.5, [1, 2]),
        (0.75, 0.51, [1, 3]),
        (1, 1, [1, 2, 3, 4]),
    ]:
        found = select.long_tail_candidates(facts, frequency, degree)
        assert [head for (head,) in rows(found, "head")] == heads


def test_the_long_tail_is_what_the_model_does_not_expect(duckdb: Any, tmp_path: Path) -> None:
    import ibis

    facts = facts_of(duckdb, tmp_path, {1: (1, 9), 2: (1, 9), 3: (2, 9), 4: (2, 9), 5: (1, 9)})
    scored = {1: -5.0, 2: -4.0, 3: -1.0, 4: -3.0}  # and 5 has not been read
    likelihoods = ibis.memtable(
        [(head, 1 if head < 3 else 2, 9, value) for head, value in scored.items()],
        columns=[*KEY, "log_likelihood"],
    )
    found = select.long_tail(facts, likelihoods)
    assert rows(found, "head", "target_new", "log_likelihood") == [(1, 9, -5.0), (2, 9, -4.0)]
    assert len(rows(select.long_tail(facts, likelihoods, 0.75), "head")) == 3


def test_a_share_that_is_none_is_told(duckdb: Any, tmp_path: Path) -> None:
    facts = facts_of(duckdb, tmp_path, {1: (1, 9)})
    with pytest.raises(ValueError, match=r"quantile of views is 90; give one from 0 to 1"):
        select.popular_facts(facts, 90)


def test_limits_are_shared_by_the_relations(duckdb: Any, tmp_path: Path) -> None:
    tails = dict.fromkeys(range(100, 150), (1, 9)) | dict.fromkeys(range(200, 203), (2, 9))
    facts = facts_of(duckdb, tmp_path, tails)

    def counts(**limits: int) -> dict[int, int]:
        return dict(Counter(r for (r,) in rows(select.limit_each(facts, **limits), "relation")))

    assert counts() == {1: 50, 2: 3}
    assert counts(per_relation=5) == {1: 5, 2: 3}
    assert counts(total=6) == {1: 3, 2: 3}
    assert counts(total=10) == {1: 7, 2: 3}
    assert counts(per_relation=5, total=7) == {1: 4, 2: 3}


def test_a_smaller_limit_keeps_some_of_what_a_larger_one_keeps(duckdb: Any, tmp_path: Path) -> None:
    facts = facts_of(duckdb, tmp_path, dict.fromkeys(range(100, 150), (1, 9)))

    def heads(seed: int, total: int) -> set[Any]:
        return set(rows(select.limit_each(facts, total=total, seed=seed), "head"))

    assert heads(0, 5) < heads(0, 10)
    assert heads(0, 10) != heads(1, 10)


def with_targets(facts: Any, targets: dict[int, int]) -> Any:
    """The facts of these heads as records."""
    import ibis

    new = ibis.memtable(list(targets.items()), columns=["head", "target_new"])
    return facts.join(new, "head")


def test_a_neighbour_is_left_alone_by_every_edit(duckdb: Any, tmp_path: Path) -> None:
    # 1 is edited from 10 to 11 and 2, of another relation, from 20 to 21.
    tails = {1: (1, 10), 2: (2, 20)}
    wrong = {3: (1, 10), 4: (1, 11), 5: (2, 14), 11: (1, 16)}
    facts = facts_of(duckdb, tmp_path, {**tails, **wrong, 6: (1, 15)})
    found = select.neighbours(with_targets(facts, {1: 11, 2: 21}), facts)
    expected = [(1, 6, 15), (2, 5, 14)]
    assert rows(found, "head", "neighbour_head", "neighbour_tail") == expected
    # An edit of 6, whatever of it, leaves 1 without a neighbour.
    found = select.neighbours(with_targets(facts, {1: 11, 6: 10}), facts)
    assert rows(found, "head", "neighbour_head") == [(6, 4)]


def test_a_common_tail_does_not_take_all_neighbours(duckdb: Any, tmp_path: Path) -> None:
    many = dict.fromkeys(range(1000, 1900), (1, 10))
    facts = facts_of(duckdb, tmp_path, {1: (1, 10), 2: (1, 11), 3: (1, 12), **many})
    found = select.neighbours(with_targets(facts, {1: 11}), facts)
    assert rows(found, "head", "neighbour_head") == [(1, 3)]


def test_properties_become_one_set(duckdb: Any, tmp_path: Path) -> None:
    facts = facts_of(duckdb, tmp_path, dict.fromkeys((1, 2, 3), (1, 9)))
    recent = with_targets(facts, {1: 9, 2: 9})
    long_tail = with_targets(facts, {2: 8, 3: 9}).mutate(log_likelihood=-2.5)
    found = select.combine({"recent": recent, "long_tail": long_tail})
    assert rows(found, "head", "target_new", "property") == [
        (1, 9, "recent"),
        (2, 9, "recent"),
        (3, 9, "long_tail"),
    ]
    assert rows(found.filter(found.property == "long_tail"), "log_likelihood") == [(-2.5,)]
    assert rows(found.log_likelihood.isnull().name("no").as_table(), "no") == [
        (False,),
        (True,),
        (True,),
    ]


@pytest.mark.parametrize(
    ("hops", "target", "edited", "expected"),
    [
        pytest.param({11: (2, 30)}, 11, {}, [(1, 2, 30)], id="counterfactual"),
        pytest.param({10: (2, 30)}, 10, {}, [(1, 2, 30)], id="true"),
        pytest.param({11: (2, 1)}, 11, {}, [], id="back to the head"),
        pytest.param({11: (2, 30), 10: (2, 30)}, 11, {}, [], id="as from the old tail"),
        pytest.param({11: (2, 30)}, 11, {11: 31}, [], id="edited itself"),
        pytest.param({12: (2, 30)}, 11, {}, [], id="none"),
    ],
)
def test_a_hop_goes_on_from_the_new_target(
    duckdb: Any,
    tmp_path: Path,
    hops: dict[int, tuple[int, int]],
    target: int,
    edited: dict[int, int],
    expected: list[Any],
) -> None:
    facts = facts_of(duckdb, tmp_path, {1: (1, 10), **hops})
    found = select.one_hop(with_targets(facts, {1: target, **edited}), facts, [(1, 2)])
    assert tuple(found.columns) == (*KEY, "target_new", "relation2", "tail2")
    assert rows(found, "head", "relation2", "tail2") == expected


def test_a_hop_that_makes_no_sense_is_not_asked(duckdb: Any, tmp_path: Path) -> None:
    facts = facts_of(duckdb, tmp_path, {1: (1, 10), 11: (2, 30)})
    found = select.one_hop(with_targets(facts, {1: 11}), facts, [(2, 1), (1, 3)])
    assert rows(found, "head") == []


def test_one_head_in_eight_is_never_edited(duckdb: Any, tmp_path: Path) -> None:
    facts = facts_of(duckdb, tmp_path, {head: (head % 3, 9999) for head in range(1, 801)})
    kept = {
        seed: {head for (head,) in rows(select.editable(facts, seed), "head")} for seed in (0, 1)
    }
    assert all(650 < len(heads) < 750 for heads in kept.values())  # 700 and four deviations
    assert kept[0] != kept[1]


def test_an_opposite_keeps_what_the_edit_takes(duckdb: Any, tmp_path: Path) -> None:
    facts = facts_of(duckdb, tmp_path, {1: (1, 10), 2: (1, 10), 3: (1, 11), 4: (2, 10)})
    records = with_targets(facts, {1: 11}).mutate(neighbour_head=3)
    found = select.opposites(records, facts)
    assert tuple(found.columns) == (*KEY, "opposite_head")
    assert rows(found, *found.columns) == [(1, 1, 10, 2)]
    assert rows(select.opposites(records.mutate(neighbour_head=2), facts), "head") == []
    both = with_targets(facts, {1: 11, 2: 11}).mutate(neighbour_head=3)  # 2 is edited itself
    assert rows(select.opposites(both, facts), "head") == []


def test_subjects_are_left_out_whatever_their_case(duckdb: Any, tmp_path: Path) -> None:
    tables = world(duckdb, tmp_path, {**LABELS, 8: "ANN"}, [(1, 19, 2), (4, 19, 5), (8, 19, 2)])
    facts = select.candidates(*tables, [19])
    found = select.without_subjects(facts, tables.entities, frozenset({"ann", "nobody"}))
    assert rows(found, "head") == [(4,)]
    assert rows(select.without_subjects(facts, tables.entities, ()), "head") == [(1,), (4,), (8,)]


@pytest.mark.parametrize(
    "label",
    ["Ann", "Washington, D.C.", "Paris (mythology)", "1984", "Q42", "Category:Towns", "List of a",
     "a" * 61, "two  spaces", " before", "Île-de-France", "東京", "really?", "line\nbreak"],
)  # fmt: skip
def test_the_engine_judges_labels_as_wording_does(duckdb: Any, tmp_path: Path, label: str) -> None:
    entities = world(duckdb, tmp_path, {1: label}, [(1, 19, 2)]).entities
    found = rows(entities.filter(select.usable(entities.label)), "id")
    assert bool(found) is usable_label(label)


def test_thresholds_are_the_values_of_quantiles(duckdb: Any, tmp_path: Path) -> None:
    labels = {i: f"<{i}>" for i in range(1, 12)}
    triples = [(i, 19, 11) for i in range(1, 11)]
    tables = world(duckdb, tmp_path, labels, triples, views={i: i for i in range(1, 11)})
    facts = select.candidates(*tables, [19])
    assert select.thresholds(facts, 0.9, 0.3, 0.3) == {"views": 9, "frequency": 0, "degree": 1}
    (tmp_path / "unseen").mkdir()
    tables = world(duckdb, tmp_path / "unseen", labels, triples)
    facts = select.candidates(*tables, [19])
    assert select.thresholds(facts, 0.9, 0.3, 0.3)["views"] is None


def test_an_inverse_question_has_one_answer(duckdb: Any, tmp_path: Path) -> None:
    tails = {1: (36, 10), 2: (36, 11), 3: (36, 11), 4: (19, 12), 5: (36, 13), 6: (36, 14)}
    facts = facts_of(duckdb, tmp_path, tails)
    triples = facts.select(*KEY)
    # 1 keeps a target of its own, 2 one of several, 5 and 6 get the same, 7's is nobody's.
    records = with_targets(facts, {1: 10, 2: 11, 4: 12, 5: 15, 6: 15, 3: 16})
    found = select.inverse(records, triples, [36])
    assert tuple(found.columns) == (*KEY, "target_new")
    assert rows(found, "head", "target_new") == [(1, 10), (3, 16)]
