"""Which facts become records: queries from Ibis tables to Ibis tables, for DuckDB and Spark alike.

The tables are those of `engines.Tables`. Nothing is computed before a result is executed or
written, so a stage that others build upon is best written and read again.

Both engines give the same rows. Draws are orders by the MD5 of a text of seed and ids, which the
engine computes. Quantiles are exact: the smallest value that at least this share of the values
does not exceed. Labels are compared in lower case, in which Σ and İ are treated alike by hand.

All entities are numbers, that of Q42 is 42; so are relations, that of P27 is 27.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from .wording import LONGEST, UNUSABLE, Relation

if TYPE_CHECKING:
    from ibis.expr.types import BooleanValue, Scalar, StringValue, Table

KEY = ("head", "relation", "tail")
CANDIDATE = (*KEY, "modified", "views", "frequency", "degree")
KIND, HUMAN = 31, 5
"""The relation "instance of", and what people are instances of."""

UP = (17, 131, 140, 279, 361, 460)
"""Relations to what an answer may be called as well: country, located in, religion, subclass of,
part of, said to be the same as."""

HAS_PART = 527
"""The inverse of "part of"."""

PATHS = 50
"""Neighbours of a true tail from which its counterfactual targets are looked for."""

OPTIONS = 32
"""Counterfactual targets that the records of one relation and tail choose from."""

NEIGHBOURS = 200
"""Facts of a relation that its records choose their neighbours from."""

NEIGHBOURS_OF_A_TAIL = 20
"""How many of these share a tail: a record's own tail never takes them all."""


def usable(label: StringValue) -> BooleanValue:
    """`wording.usable_label` in the engine."""
    fits = (label.length() <= LONGEST) & label.re_search(r"\p{L}")
    return fits & ~label.re_search(UNUSABLE)


# -- Facts to choose from --------------------------------------------------------------------------


def degrees(triples: Table) -> Table:
    """Columns id, degree: in how many triples an entity is head or tail."""
    ends = triples.select(id="head").union(triples.select(id="tail"))
    return ends.group_by("id").agg(degree=ends.count())


def candidates(
    entities: Table,
    triples: Table,
    views: Table,
    frequency: Table,
    relations: Iterable[int],
    several_answers: bool = False,
) -> Table:
    """The facts of the given relations that can be asked for.

    Columns: head, relation, tail; of the head modified, views, frequency (0 where nothing is known
    of it) and degree.

    Left out are facts with an end that has no label, or whose head's label has the tail's in it,
    so that the question would hold its answer; and where head and relation have several tails,
    unless those are wanted.
    """
    facts = triples.filter(triples.relation.isin(sorted(relations)))
    facts = facts.distinct() if several_answers else _single_answers(facts)
    heads = entities.select("title", "modified", head="id", head_label="label")
    tails = entities.select(tail="id", tail_label="label")
    labelled = facts.filter(facts["head"] != facts.tail).join(heads, "head").join(tails, "tail")
    askable = labelled.filter(~_has_in_it(labelled.head_label, labelled.tail_label))
    counted = _with(askable, views, "title", "views")
    counted = _with(counted, frequency.rename(head="id"), "head", "frequency")
    return _with(counted, degrees(triples).rename(head="id"), "head", "degree").select(*CANDIDATE)


def sensible(candidates: Table, triples: Table, relations: Mapping[int, Relation]) -> Table:
    """Without facts about heads that are not of the relation's kinds, and answers that are none.

    Whether a head is a person tells "instance of"; where it is silent, the fact stays.
    """
    kinds = triples.filter(triples.relation == KIND)
    people = kinds.filter(kinds.tail == HUMAN).select("head").distinct()
    others = kinds.select("head").distinct().anti_join(people, "head")
    of_people = [r.id for r in relations.values() if r.kinds == ("person",)]
    of_others = [r.id for r in relations.values() if "person" not in r.kinds]
    relation = candidates.relation
    parts = [
        candidates.filter(relation.isin(of_people)).anti_join(others, "head"),
        candidates.filter(relation.isin(of_others)).anti_join(people, "head"),
        candidates.filter(relation.notin([*of_people, *of_others])),
    ]
    kept = parts[0].union(*parts[1:])
    for entry in relations.values():
        if entry.no_answers:
            unwanted = (kept.relation == entry.id) & kept.tail.isin(entry.no_answers)
            kept = kept.filter(~unwanted)
    return kept


def without_subjects(candidates: Table, entities: Table, subjects: Iterable[str]) -> Table:
    """Without facts whose head is called as one of the subjects, given in lower case, by its label
    or another name."""
    import ibis

    names = sorted(subjects)
    if not names:
        return candidates
    unwanted = ibis.memtable({"name": names}, schema={"name": "string"})
    heads = _names(entities).semi_join(unwanted.select(name=_folded(unwanted.name)), "name")
    return candidates.anti_join(heads.select(head="id"), "head")


def _names(entities: Table) -> Table:
    """Columns id, name: labels and aliases as they are compared."""
    labels = entities.select("id", name="label")
    names = labels.union(entities.select("id", name=entities.aliases.unnest()))
    return names.select("id", name=_folded(names["name"]))


def ambiguous(ids: Table, entities: Table) -> Table:
    """Columns id, name: the aliases of these entities by which others are called as well."""
    mine = entities.semi_join(ids, "id")
    mine = mine.select("id", name=mine.aliases.unnest())
    mine = mine.mutate(key=_folded(mine["name"]))
    called = _names(entities).rename(key="name").semi_join(mine, "key")
    ends = called.group_by("key").agg(first=called.id.min(), last=called.id.max())
    shared = ends.filter(ends["first"] != ends["last"])
    return mine.semi_join(shared, "key").select("id", "name")


def editable(candidates: Table, seed: int = 0) -> Table:
    """Without the facts of one head in eight: no record edits these, so there are neighbours."""
    return candidates.filter(_draw(seed, "kept", candidates["head"])[0] >= "2")


def _single_answers(facts: Table) -> Table:
    ends = facts.group_by("head", "relation").agg(tail=facts.tail.min(), last=facts.tail.max())
    return ends.filter(ends.tail == ends["last"]).drop("last")


def _with(table: Table, other: Table, key: str, column: str) -> Table:
    """The table with a column of another one, 0 where that has no such key."""
    both = table.left_join(other.select(key, column), key)
    return both.select(*table.columns, **{column: both[column].fill_null(0)})


# -- The three properties --------------------------------------------------------------------------


def recent(candidates: Table, before: datetime, window_days: int = 7) -> Table:
    """Facts of heads that were modified in the days up to `before` (UTC, without a zone).

    Columns: a candidate's and target_new, the tail as the dump has it.
    """
    modified = candidates.modified
    after = before - timedelta(days=window_days)
    chosen = candidates.filter(modified > after, modified <= before)
    return chosen.mutate(target_new=chosen.tail)


def popular_facts(candidates: Table, views_quantile: float = 0.9) -> Table:
    """Facts of heads with views at or above the quantile of the heads that have any."""
    seen = candidates.filter(candidates.views > 0)
    return seen.filter(seen.views >= _quantile(_heads(seen, "views"), "views", views_quantile))


def counterfactual(
    facts: Table,
    candidates: Table,
    triples: Table,
    entities: Table,
    hub: int = 1000,
    seed: int = 0,
    keep: Callable[[str, Table, Sequence[str]], Table] = lambda name, table, order: table,
) -> Table:
    """The facts that have an untrue target which is near the truth; columns: and target_new.

    target_new is the tail of another candidate of the relation, and shares a neighbour with the
    true tail: tail - x - target_new, over any relations in any direction. x is in at most `hub`
    triples, and PATHS neighbours of a tail are looked at. Where both are instances of
    something, they have such a class in common.

    With fewer facts (`limit_each`) this takes less time; the cost grows with their distinct tails.
    keep: writes a table in between, by name and order, and gives it back: one query for all of this
    holds more at once than a small memory has.
    """
    tails = facts.select("relation", "tail").distinct()
    targets = candidates.select("relation", target_new="tail").distinct()
    near = keep("near", _near(tails, triples, hub, seed), ["tail", "x"])
    pairs = keep("pairs", _two_hops(near, targets, triples), ["tail", "target_new"])
    pairs = keep("alike", _of_one_kind(pairs, triples), ["tail", "target_new"])
    options = tails.join(pairs, "tail").join(targets, ["relation", "target_new"])
    draw = _draw(seed, "option", options.relation, options.tail, options.target_new)
    options = _first(OPTIONS, options, ["relation", "tail"], draw)
    options = keep("options", options, ["relation", "tail", "target_new"])
    choices = facts.select(*KEY).join(options, ["relation", "tail"])
    choices = keep("choices", _untrue(choices, triples), [*KEY, "target_new"])
    choices = _told_apart(_not_above(choices, triples), entities)
    draw = _draw(seed, "target", choices["head"], choices.relation, choices.target_new)
    chosen = _first(1, choices, KEY, draw)
    return facts.join(chosen.select(*KEY, "target_new"), KEY)


def _near(tails: Table, triples: Table, hub: int, seed: int) -> Table:
    """Columns tail, x: neighbours of the tails that are no hubs."""
    degree = degrees(triples)
    hubs = degree.filter(degree.degree > hub).select(x="id")
    near = _links(triples).rename(tail="id", x="other")
    near = near.semi_join(tails, "tail").anti_join(hubs, "x").distinct()
    return _first(PATHS, near, ["tail"], _draw(seed, "path", near.tail, near.x))


def _two_hops(near: Table, targets: Table, triples: Table) -> Table:
    """Columns tail, target_new: pairs with a neighbour in common."""
    far = _links(triples).rename(x="id", target_new="other").semi_join(near, "x")
    pairs = near.join(far, "x").select("tail", "target_new")
    pairs = pairs.filter(pairs.tail != pairs.target_new).distinct()
    return pairs.semi_join(targets, "target_new")


def _links(triples: Table) -> Table:
    """Columns id, other: each triple from either end."""
    out = triples.select(id="head", other="tail")
    return out.union(triples.select(id="tail", other="head"))


def _of_one_kind(pairs: Table, triples: Table) -> Table:
    """Without pairs that have no class in common although both have classes."""
    kinds = triples.filter(triples.relation == KIND)
    tails = kinds.select(tail="head", kind="tail")
    targets = kinds.select(target_new="head", kind="tail")
    common = pairs.join(tails, "tail").semi_join(targets, ["target_new", "kind"])
    classed = pairs.semi_join(tails, "tail").semi_join(targets, "target_new")
    return pairs.anti_join(
        classed.anti_join(common, ["tail", "target_new"]), ["tail", "target_new"]
    )


def _untrue(choices: Table, triples: Table) -> Table:
    """Without those that the dump has as facts, or whose target is the head itself."""
    facts = triples.rename(target_new="tail")
    choices = choices.filter(choices["head"] != choices.target_new)
    return choices.anti_join(facts, ["head", "relation", "target_new"])


def _not_above(choices: Table, triples: Table) -> Table:
    """Without targets above the tail or below it, by up to two steps of UP: who was born in Paris
    was born in France, and who died of leukemia died of cancer."""
    up = triples.filter(triples.relation.isin(UP)).select(low="head", high="tail")
    parts = triples.filter(triples.relation == HAS_PART).select(low="tail", high="head")
    up = up.union(parts).distinct()
    pairs = choices.select("tail", "target_new").distinct()
    pairs = pairs.select(low="tail", high="target_new").union(
        pairs.select(low="target_new", high="tail")
    )
    one = pairs.semi_join(up, ["low", "high"])
    middle = up.semi_join(pairs, "low").rename(middle="high")
    two = pairs.join(middle, "low").semi_join(up.rename(middle="low"), ["middle", "high"])
    tied = one.union(two.select("low", "high"))
    tied = tied.select(tail="low", target_new="high").union(
        tied.select(tail="high", target_new="low")
    )
    return choices.anti_join(tied, ["tail", "target_new"])


def _told_apart(choices: Table, entities: Table) -> Table:
    """Without targets that are called as the tail is, wholly or in part, or as a part of the head.

    "American English" is no other answer than "English".
    """
    for end in ("head", "tail", "target_new"):
        names = entities.select("label", "aliases", **{end: "id"})
        choices = choices.join(
            names.rename(**{f"{end}_label": "label", f"{end}_aliases": "aliases"}), end
        )
    return choices.filter(
        ~_has_in_it(choices.tail_label, choices.target_new_label),
        ~_has_in_it(choices.target_new_label, choices.tail_label),
        ~choices.tail_aliases.contains(choices.target_new_label),
        ~choices.target_new_aliases.contains(choices.tail_label),
        ~_has_in_it(choices.head_label, choices.target_new_label),
    )


def long_tail_candidates(
    candidates: Table, frequency_quantile: float = 0.3, degree_quantile: float = 0.3
) -> Table:
    """Facts of heads with frequency and degree at or below the quantiles of all heads."""
    rare = _quantile(_heads(candidates, "frequency"), "frequency", frequency_quantile)
    remote = _quantile(_heads(candidates, "degree"), "degree", degree_quantile)
    return candidates.filter(candidates.frequency <= rare, candidates.degree <= remote)


def long_tail(candidates: Table, likelihoods: Table, quantile: float = 0.5) -> Table:
    """Facts that the language model does not expect, of those that it has read (`likelihood`).

    Columns: a candidate's, log_likelihood and target_new, the tail. The quantile is that of all
    facts, whatever their relation: a relation that the model knows well gives fewer.
    """
    read = candidates.join(likelihoods.select(*KEY, "log_likelihood"), KEY)
    unexpected = read.filter(read.log_likelihood <= _quantile(read, "log_likelihood", quantile))
    return unexpected.mutate(target_new=unexpected.tail)


def thresholds(
    candidates: Table, views: float, frequency: float, degree: float
) -> dict[str, int | None]:
    """The values that the quantiles stand for."""
    seen = candidates.filter(candidates.views > 0)
    found = {
        "views": _quantile(_heads(seen, "views"), "views", views),
        "frequency": _quantile(_heads(candidates, "frequency"), "frequency", frequency),
        "degree": _quantile(_heads(candidates, "degree"), "degree", degree),
    }
    values = {name: scalar.execute() for name, scalar in found.items()}
    return {
        name: None if value is None or value != value else int(value)
        for name, value in values.items()
    }


def _heads(candidates: Table, column: str) -> Table:
    return candidates.select("head", column).distinct()


# -- The data set ----------------------------------------------------------------------------------


def limit_each(
    selected: Table, per_relation: int | None = None, total: int | None = None, seed: int = 0
) -> Table:
    """At most so many of each relation and in all, drawn; None: no limit.

    The total is filled in turns, one of each relation at a time, so that none fills it alone.
    """
    import ibis

    draw = _draw(seed, "limit", *(selected[name] for name in KEY))
    drawn = selected.mutate(draw=draw)
    drawn = drawn.mutate(turn=ibis.row_number().over(group_by="relation", order_by=drawn.draw))
    if per_relation is not None:
        drawn = drawn.filter(drawn.turn < per_relation)
    if total is not None:
        drawn = drawn.order_by("turn", "draw").limit(total)
    return drawn.drop("draw", "turn")


def combine(properties: Mapping[str, Table]) -> Table:
    """One set of records of all properties, each head and relation in the first that has them.

    Columns: a candidate's, target_new, log_likelihood (null but for long_tail), property.
    """
    import ibis

    tables = []
    for rank, (name, table) in enumerate(properties.items()):
        if "log_likelihood" not in table.columns:
            table = table.mutate(log_likelihood=ibis.null("float64"))
        table = table.select(*CANDIDATE, "target_new", "log_likelihood")
        tables.append(table.mutate(property=ibis.literal(name), rank=ibis.literal(rank)))
    records = ibis.union(*tables)
    records = _first(1, records, ["head", "relation"], records["rank"], records.tail)
    return records.drop("rank")


def neighbours(selected: Table, candidates: Table, seed: int = 0) -> Table:
    """Each record with a fact that its edit must leave alone; columns: and those of the fact.

    (neighbour_head, relation, neighbour_tail) has another tail than the record has and gets, and no
    record edits neighbour_head in any relation: so `selected` should be the whole data set
    (`combine`). A record without such a fact is left out.
    """
    free = candidates.anti_join(selected, "head")
    free = free.select("relation", neighbour_head="head", neighbour_tail="tail")
    draw = _draw(seed, "neighbours", free.relation, free.neighbour_head, free.neighbour_tail)
    free = free.mutate(draw=draw)
    free = _first(NEIGHBOURS_OF_A_TAIL, free, ["relation", "neighbour_tail"], free.draw)
    free = _first(NEIGHBOURS, free, ["relation"], free.draw).drop("draw")
    pairs = selected.join(free, "relation")
    ends = (pairs.tail, pairs.target_new)
    pairs = pairs.filter(
        *(pairs.neighbour_tail != end for end in ends),
        *(pairs.neighbour_head != end for end in ends),
    )
    return _first(1, pairs, KEY, _draw(seed, "neighbour", *(pairs[k] for k in KEY), *_pair(pairs)))


def _pair(pairs: Table) -> tuple[StringValue, StringValue]:
    return pairs.neighbour_head, pairs.neighbour_tail


def opposites(selected: Table, candidates: Table, seed: int = 0) -> Table:
    """Of each record that has one, another head with the record's true tail.

    What the edit takes from its subject, that head keeps; no record edits it. Columns: head,
    relation, tail, opposite_head.
    """
    free = candidates.anti_join(selected, "head")
    free = free.select("relation", "tail", opposite_head="head")
    draw = _draw(seed, "opposites", free.relation, free.tail, free.opposite_head)
    free = _first(NEIGHBOURS_OF_A_TAIL, free, ["relation", "tail"], draw)
    pairs = selected.select(*KEY, "neighbour_head").join(free, ["relation", "tail"])
    pairs = pairs.filter(pairs.neighbour_head != pairs.opposite_head).drop("neighbour_head")
    return _first(1, pairs, KEY, _draw(seed, "opposite", *(pairs[n] for n in pairs.columns)))


# -- Probes for portability ------------------------------------------------------------------------


def one_hop(
    selected: Table, candidates: Table, follows: Iterable[tuple[int, int]], seed: int = 0
) -> Table:
    """Of each record that has one, a fact of its new target: what follows from the edit.

    Columns: head, relation, tail, target_new, relation2, tail2; (target_new, relation2, tail2) is
    a candidate, that no record edits, and (relation, relation2) is in `follows`. It tells the new
    target from the old: the old tail does not have tail2 as well. `selected` should be the whole
    data set (`combine`).
    """
    import ibis

    facts = candidates.select(target_new="head", relation2="relation", tail2="tail")
    inner, outer = zip(*sorted(follows), strict=True)
    sensible = ibis.memtable(
        {"relation": inner, "relation2": outer}, schema={"relation": "int32", "relation2": "int32"}
    )
    pairs = selected.select(*KEY, "target_new").join(facts, "target_new")
    pairs = pairs.semi_join(sensible, ["relation", "relation2"])
    pairs = pairs.filter(pairs.tail2 != pairs["head"])
    edited = selected.select(target_new="head", relation2="relation")
    pairs = pairs.anti_join(edited, ["target_new", "relation2"])
    old = candidates.select(tail="head", relation2="relation", tail2="tail")
    changed = pairs.filter(pairs.tail != pairs.target_new)
    changed = changed.anti_join(old, ["tail", "relation2", "tail2"])
    pairs = pairs.filter(pairs.tail == pairs.target_new).union(changed)
    draw = _draw(seed, "hop", *(pairs[name] for name in pairs.columns))
    return _first(1, pairs, KEY, draw)


def inverse(selected: Table, triples: Table, relations: Iterable[int]) -> Table:
    """The records that can be asked for from their new target, whose answer is the head.

    relations: those that have such a question. Columns: head, relation, tail, target_new. Left
    out are new targets of several heads, in the dump or by the edits: with a counterfactual
    target, that is nearly always so.
    """
    asked = selected.filter(selected.relation.isin(sorted(relations)))
    asked = asked.select(*KEY, "target_new")
    true = triples.select("head", "relation", target_new="tail")
    told = selected.select("head", "relation", "target_new")
    heads = true.semi_join(asked, ["relation", "target_new"]).union(told)
    ends = heads.group_by("relation", "target_new").agg(
        first_head=heads["head"].min(), last_head=heads["head"].max()
    )
    single = ends.filter(ends.first_head == ends.last_head)
    return asked.semi_join(single, ["relation", "target_new"])


# -- What both engines do alike --------------------------------------------------------------------


def _draw(seed: int, purpose: str, *ids: StringValue) -> StringValue:
    """A text that orders rows by chance, the same in every engine for the same ids."""
    import ibis

    text = ibis.literal(f"{seed} {purpose}")
    for number in ids:
        text = text + " " + number.cast("string")
    return text.hexdigest("md5")


def _first(n: int, table: Table, by: Iterable[str], *order: StringValue) -> Table:
    """Of each group the first n rows."""
    import ibis

    ranked = table.mutate(place=ibis.row_number().over(group_by=list(by), order_by=list(order)))
    return ranked.filter(ranked.place < n).drop("place")


def _quantile(table: Table, column: str, share: float) -> Scalar:
    """The smallest value that at least this share of the rows does not exceed.

    From the counts of the distinct values: the engines' own functions interpolate or approximate.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"The quantile of {column} is {share}; give one from 0 to 1.")
    counts = table.group_by(column).agg(n=table.count())
    counts = counts.mutate(up_to=counts.n.cumsum(order_by=column))
    enough = counts.up_to >= share * table.count().as_scalar()
    return counts.filter(enough)[column].min().as_scalar()


def _has_in_it(label: StringValue, other: StringValue) -> BooleanValue:
    return _folded(label).contains(_folded(other))


def _folded(label: StringValue) -> StringValue:
    """In lower case; Java and DuckDB write the end of a word in Σ and the dot of İ differently."""
    return label.lower().replace("ς", "σ").replace("i\u0307", "i")
