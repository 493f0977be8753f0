"""How the relations of ``relations.yaml`` are asked for in English.

>>> from easyedit_dafnet.dafset.wording import RELATIONS, Name, render
>>> render(RELATIONS[36].cloze[0], Name("Soviet Union", past=True))
'The capital of the Soviet Union was'
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

KINDS = ("person", "place", "work", "organisation", "thing")
"""What the heads of a relation can be; its answers can be ideas as well."""

LONGEST = 60
"""Characters of the longest label that is used."""

_SUBJECT = re.compile(r"\{(s|S|s's|S's|the s)\}")
_FIELD = re.compile(rf"{_SUBJECT.pattern}|\{{([a-z ]+)/([a-z ]+)\}}")

UNUSABLE = (
    r"[()\[\]{}<>|]|\?$|^[LPQ][0-9]+$|^Lists? of |"
    r"^(Category|File|Help|Module|Portal|Template|Wikipedia):|^\s|\s$|\s\s|[\t\n\r\f\v]"
)
"""A regular expression of labels that no sentence reads well with, for every engine."""


class WordingError(ValueError):
    """Relations that cannot be used; the message says which one and why."""


@dataclass(frozen=True)
class Relation:
    """A property of Wikidata and its wordings, in the notation that ``relations.yaml`` explains."""

    id: int
    """The number of P27."""
    name: str
    kinds: tuple[str, ...]
    answer: str
    """The kind of its tails."""
    cloze: tuple[str, ...]
    """Each ends right before the answer."""
    questions: tuple[str, ...]
    phrase: str
    """Names the answer, within another sentence."""
    inverse: str | None = None
    """A cloze about the tail, whose answer is the head."""
    no_answers: tuple[int, ...] = ()
    """Tails with which no sentence reads well: of Q42 the number."""


@dataclass(frozen=True)
class Name:
    """A subject as a sentence has it: always with its label as it is."""

    label: str
    past: bool = False
    """Has died, ended or been dissolved."""
    article: bool | None = None
    """Whether "the" comes before the label; None where that depends on the label."""

    @property
    def s(self) -> str:
        """In mid-sentence."""
        return self._the + self.label

    @property
    def S(self) -> str:
        """At the beginning."""
        return self._the.capitalize() + self.label

    @property
    def _the(self) -> str:
        if _HAS_ARTICLE.match(self.label):
            return ""
        wanted = _takes_the(self.label) if self.article is None else self.article
        return "the " if wanted else ""


def wordings(relation: Relation, subject: Name, mixed: random.Random) -> list[str]:
    """All ways to ask for the relation, a cloze first, in an order that `mixed` draws.

    Sentences that would begin with a small letter ("eBay", "cholera") are left out.
    """
    subject = _as_head(relation, subject)
    cloze, questions = (
        [text for text in (render(wording, subject) for wording in group) if not text[0].islower()]
        for group in (relation.cloze, relation.questions)
    )
    first = mixed.choice(cloze)
    others = [text for text in cloze + questions if text != first]
    mixed.shuffle(others)
    return [first, *others]


def follows(outer: Relation, inner: Relation) -> bool:
    """Whether it makes sense to ask for `outer` of what `inner` answers.

    Not whom a place is named after, which the question has forgotten by then; nor the country of a
    country.
    """
    of_a_country = outer.id == 17 and inner.id in (17, 27)
    return inner.answer in outer.kinds and outer.id != 138 and not of_a_country


def composed(outer: Relation, inner: Relation, subject: Name, past: bool = False) -> str:
    """A cloze of `outer` about the value that `inner` has for the subject, which it does not name.

    past: whether that value has died, ended or been dissolved.
    """
    between = render(inner.phrase, _as_head(inner, subject)).removeprefix("the ")
    return render(outer.cloze[0], Name(between, past, article=True))


def render(wording: str, subject: Name) -> str:
    """The wording with the subject in it."""

    def words(field: re.Match[str]) -> str:
        key, now, then = field.groups()
        if not key:
            return then if subject.past else now
        name = subject
        if key == "the s" and not _NO_ARTICLE.search(subject.label):
            name = replace(subject, article=True)
        text = name.S if key[0].isupper() else name.s
        return text + _possessive(text) if key.endswith("'s") else text

    return _FIELD.sub(words, wording)


def target_words(label: str) -> str:
    """The label as the last words of a sentence: "the United States"."""
    return Name(label).s


def usable_label(label: str) -> bool:
    """Whether an English sentence with this label reads as one."""
    return (
        len(label) <= LONGEST and any(c.isalpha() for c in label) and not re.search(UNUSABLE, label)
    )


def _as_head(relation: Relation, subject: Name) -> Name:
    """The subject, without an article where the relation is about people or titles."""
    if subject.article is None and ("work" in relation.kinds or relation.kinds == ("person",)):
        return replace(subject, article=False)
    return subject


def _possessive(text: str) -> str:
    return "'" if text.endswith("s") else "'s"


# --- Articles ---


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Names with "the" that no rule finds. Names that something else has as well are left out (Amazon).
_THE = _words("""
    Alps Andes Americas Arctic Bahamas Balkans Bundesliga Bundestag Caribbean Carpathians Caucasus
    Comoros Danube Dolomites Euphrates Gambia Ganges Himalayas Knesset Kuomintang Louvre Maldives
    Netherlands Nile Philippines Pyrenees Reichstag Rhine Rhône Riksdag Sahara Seychelles Storting
    Thames Tigris Urals Volga Wehrmacht Yangtze
    BBC CIA FBI KGB NBA NFL NHL UK UN USA USSR
""") | {
    "Actors Studio",
    "Anaheim Ducks",
    "Anglican Communion",
    "Bank of England",
    "Catholic Church",
    "Colorado Avalanche",
    "Dallas Stars",
    "Eastern Orthodox Church",
    "Episcopal Church",
    "Greek Orthodox Church",
    "Juilliard School",
    "League of Nations",
    "Liberal Democrats",
    "Miami Heat",
    "Middle East",
    "Minnesota Wild",
    "New York Rangers",
    "Oklahoma City Thunder",
    "Orlando Magic",
    "Russian Orthodox Church",
    "Seattle Kraken",
    "St. Louis Blues",
    "Tampa Bay Lightning",
    "Texas Rangers",
    "United Methodist Church",
    "United States Military Academy",
    "United States Naval Academy",
    "Utah Jazz",
    "Washington Post",
}
_NO_THE = {
    "Banana Republic",
    "Bloc Party",
    "Fall River",
    "Hood River",
    "Old Navy",
    "Peace River",
    "Red River",
    "Western Union",
}

# The word before "of": the University of Oxford, the Massachusetts Institute of Technology.
_THE_OF = _words("""
    Academy Archdiocese Army Assembly Association Basilica Battle Bay Cape Cathedral Church City
    College Commission Committee Commonwealth Confederation Conservatory Council County
    Department Diocese District Duchy Emirate Emirates Empire Federation Government Guild Gulf
    House Institute Isle Kingdom Legion Library Ministry Municipality Museum Office Order Palace
    Parliament Party Principality Province Republic School Sea Senate Siege Society State States
    Strait Sultanate Tower Treaty Union University arrondissement district municipality
""")

# The last of several: the Ottoman Empire, the Democratic Party, the Chicago Bulls.
_THE_LAST = _words("""
    Army Assembly Association Caliphate Canal Commission Committee Commonwealth Confederation
    Congress Desert Dynasty Emirates Empire Federation Force Government Guild Islands Khanate
    Kingdom League Mountains Museum Nations Navy Ocean Orchestra Parliament Party Peninsula
    Philharmonic Realm Reich Republic River Sea Senate Society States Sultanate Union dynasty
    49ers 76ers Angels Astros Bears Bengals Bills Blackhawks Blazers Braves Brewers Broncos Browns
    Bruins Buccaneers Bucks Bulls Canadiens Canucks Capitals Cardinals Cavaliers Celtics Chargers
    Chiefs Clippers Colts Commanders Cowboys Cubs Diamondbacks Dodgers Dolphins Eagles Falcons
    Flyers Giants Grizzlies Guardians Hawks Hornets Hurricanes Islanders Jaguars Jets Kings Knicks
    Lakers Leafs Lions Mariners Marlins Mavericks Mets Nationals Nets Nuggets Oilers Orioles Packers
    Pacers Padres Panthers Patriots Pelicans Penguins Phillies Pirates Pistons Predators Raiders
    Rams Raptors Ravens Rays Reds Rockets Rockies Royals Sabres Saints Seahawks Senators Sharks Sox
    Spurs Steelers Suns Texans Tigers Timberwolves Titans Twins Vikings Warriors Wizards Yankees
""")

# Waters that stay without one where rivers have it.
_NO_ARTICLE = re.compile(r"^(Lake|Loch) | (Brook|Creek)$")

_HAS_ARTICLE = re.compile(r"(The|the|A|An) ")


def _takes_the(label: str) -> bool:
    """Whether English puts "the" before this name of a place or an organisation."""
    if label in _THE or label in _NO_THE:
        return label in _THE
    before, of, _ = label.partition(" of ")
    last = before.rpartition(" ")[2]
    return last in _THE_OF if of else last != label and last in _THE_LAST


# --- The file ---

_LISTS = ("kinds", "cloze", "questions")
_TEXTS = ("name", "answer", "phrase")


def load_relations(path: Path) -> Mapping[int, Relation]:
    """The relations of a file such as ``relations.yaml``, by their numbers.

    Raises WordingError naming the first that is damaged.
    """
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise WordingError(f"{path} cannot be read as YAML: {reason}.") from None
    if not isinstance(entries, dict) or not entries:
        raise WordingError(f"{path} must hold relations by their properties, such as P27.")
    relations = {}
    for key, entry in entries.items():
        try:
            relation = _relation(key, entry)
        except WordingError as error:
            raise WordingError(f"{path}: {key}: {error}.") from None
        relations[relation.id] = relation
    return MappingProxyType(relations)


def _relation(key: object, entry: Any) -> Relation:
    _check(re.fullmatch(r"P[1-9]\d*", str(key)), "this is not a property, such as P27")
    needed = {*_LISTS, *_TEXTS}
    _check(
        isinstance(entry, dict) and needed <= set(entry) <= needed | {"inverse", "no_answers"},
        f"the keys must be {', '.join(sorted(needed))} and, if wanted, inverse and no_answers",
    )
    items = entry.get("no_answers", [])
    _check(
        isinstance(items, list) and all(re.fullmatch(r"Q[1-9]\d*", str(item)) for item in items),
        "no_answers must be a list of items, such as Q42",
    )
    entry = {**entry, "no_answers": tuple(int(item[1:]) for item in items)}
    for name, value in entry.items():
        if name == "no_answers":
            continue
        if name in _LISTS:
            _check(isinstance(value, list) and _are_texts(value), f"{name} must be a list of texts")
        else:
            _check(_are_texts([value]), f"{name} must be a text")
    lists = {name: tuple(entry[name]) for name in _LISTS}
    relation = Relation(**{"id": int(str(key)[1:]), **entry, **lists})
    _check_wordings(relation)
    return relation


def _check_wordings(relation: Relation) -> None:
    cloze, questions, phrase = relation.cloze, relation.questions, relation.phrase
    inverse = () if relation.inverse is None else (relation.inverse,)
    _check(set(relation.kinds) <= set(KINDS), f"kinds must be among {', '.join(KINDS)}")
    _check(
        relation.answer in (*KINDS, "idea"), f"answer must be an idea or one of {', '.join(KINDS)}"
    )
    _check(min(len(cloze), len(questions)) >= 2, "it needs two cloze and two questions at least")
    for wording in (*cloze, *questions, phrase, *inverse):
        _check(len(_SUBJECT.findall(wording)) == 1, f"{wording!r} must have the subject once")
        _check("{" not in _FIELD.sub("", wording), f"{wording!r} has a field that is not known")
    for wording in (*cloze, *inverse):
        _check(re.search(r"[a-z}]$", wording), f"{wording!r} must end with a word")
    for wording in questions:
        _check(wording.endswith("?"), f"{wording!r} must end with a question mark")
    _check(phrase.startswith("the "), f'{phrase!r} must begin with "the "')
    _check(
        any(not wording.startswith("{S") for wording in cloze),
        "one cloze at least must begin with another word than the subject",
    )


def _are_texts(values: list[Any]) -> bool:
    return all(isinstance(value, str) and value.strip() for value in values)


def _check(holds: object, problem: str) -> None:
    if not holds:
        raise WordingError(problem)


RELATIONS_FILE = Path(__file__).with_name("relations.yaml")

RELATIONS: Mapping[int, Relation] = load_relations(RELATIONS_FILE)
"""The relations of the data set, by their numbers."""
