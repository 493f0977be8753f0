from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.scoring import host_scores
from easyedit_dafnet.bench import EditRecord, Probe, passes
from easyedit_dafnet.bench.answers import exact_match, first_word, token_f1
from easyedit_dafnet.bench.same_subject import OWN_QUESTIONS, with_own_questions
from easyedit_dafnet.bench.scoring import METRICS, SCORINGS, Forced, Scorer, Scores
from easyedit_dafnet.bridge import load_easyeditor
from easyedit_dafnet.smollm2 import smollm2_path
from tests.tiny import tiny_gpt2, tiny_llama, tokenizer

TOK: Any = tokenizer()
END = "<|endoftext|>"
# What the model of these tests says: each text is learnt by heart.
LEARNT = [
    "The capital of France is Rome. The twins",
    "The capital of Italy is Oslo, a well known town. London",
    "In which country is the city of Lyon? It is in Germany\nLondon",
    f"The mother tongue of Danielle Darrieux is English{END} and of the twins",
    "Vienna is a list of well known towns\nVienna",
]
RECORDS = [
    EditRecord(
        "a",
        "The capital of France is",
        "Rome",
        rephrases=("The capital of Italy is", "Vienna is a list of"),
        locality={
            "towns": (Probe("Vienna is a list of", ("well known towns",)),),
            "people": (Probe("The mother tongue of Danielle Darrieux is", ("French",)),),
        },
        portability={
            "aliases": (Probe("The capital of Italy is", ("Athens", "The Oslo")),),
            "composed": (
                Probe(
                    "In which country is the city of Lyon? It is in",
                    ("Germany",),
                    (Probe("The capital of France is", ("Roma", "Rome")),),
                ),
                Probe(
                    "Vienna is a list of",
                    ("Athens",),
                    (
                        Probe("The capital of France is", ("Rome",)),
                        Probe("The capital of Italy is", ("Rome",)),
                    ),
                ),
            ),
        },
    ),
    EditRecord("b", "In which country is the city of Lyon? It is in", "Germany"),
    EditRecord("c", "Vienna is a list of", "well known twins"),
]


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny Llama that has learnt LEARNT."""
    folder = tiny_llama(tmp_path_factory.mktemp("scoring") / "tiny-llama")
    model = AutoModelForCausalLM.from_pretrained(folder)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    batch = TOK(LEARNT, padding=True, return_tensors="pt")
    ids = batch["input_ids"]
    mask = torch.tensor([[1] * len(row) + [0] * (ids.shape[1] - len(row))
                         for row in TOK(LEARNT)["input_ids"]])  # fmt: skip
    for _ in range(60):
        loss = model(ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3
    return model.eval()


@pytest.fixture(scope="module")
def edited(talker: Any) -> Any:
    """Another model, that says other things."""
    model = deepcopy(talker)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        weight = model.get_parameter("model.layers.1.mlp.down_proj.weight")
        weight.add_(torch.randn(weight.shape, generator=generator) * 0.3)
    return model


@pytest.fixture(scope="module")
def smollm2() -> tuple[Any, Any]:
    tok = AutoTokenizer.from_pretrained(smollm2_path(), padding_side="left")
    return AutoModelForCausalLM.from_pretrained(smollm2_path()).eval(), tok


def scored(model: Any, records: Sequence[EditRecord] = RECORDS, **settings: Any) -> Scores:
    scorer = Scorer(TOK)
    return scorer.score(model, records, scorer.unedited(model, records), **settings)


# -- Generated ------------------------------------------------------------------------------------


def test_a_text_goes_on_to_its_natural_stop(talker: Any) -> None:
    prompts = [
        "The capital of France is",  # the end of a sentence
        "In which country is the city of Lyon? It is in",  # a new line
        "The mother tongue of Danielle Darrieux is",  # an end token
        "The capital of Italy is",  # the most new tokens
    ]
    texts = Scorer(TOK, max_new_tokens=5).generate(talker, prompts)
    assert texts[:3] == ["Rome", "Germany", "English"]
    assert "Oslo, a well known town".startswith(texts[3]) and len(texts[3]) < 20
    assert len(TOK(f" {texts[3]}")["input_ids"]) == 5
    assert Scorer(TOK).generate(talker, prompts)[3] == "Oslo, a well known town"


def test_a_batch_ends_when_all_of_its_texts_have(talker: Any) -> None:
    lengths: list[int] = []
    handle = talker.register_forward_hook(lambda *_: lengths.append(1))
    Scorer(TOK, max_new_tokens=40).generate(talker, [RECORDS[0].prompt, RECORDS[1].prompt])
    handle.remove()
    assert len(lengths) < 12


def test_nothing_of_the_target_reaches_the_model(
    talker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[list[list[int]], int]] = []
    generate = talker.generate

    def watched(**inputs: Any) -> Any:
        seen.append((inputs["input_ids"].tolist(), inputs["max_new_tokens"]))
        return generate(**inputs)

    monkeypatch.setattr(talker, "generate", watched)
    first = scored(talker)
    asked, seen[:] = list(seen), []
    other = Probe("x", ("quite another answer that is much longer",))
    changed = [
        replace(
            record,
            target_new="quite another target that is much longer",
            ground_truth="and another one",
            portability={
                kind: tuple(replace(p, answers=other.answers) for p in probes)
                for kind, probes in record.portability.items()
            },
            locality={
                kind: tuple(replace(p, answers=other.answers) for p in probes)
                for kind, probes in record.locality.items()
            },
        )
        for record in RECORDS
    ]
    second = scored(talker, changed)
    assert seen == asked
    for before, after in zip(first.texts, second.texts, strict=True):
        assert {**before, "target_new": ""} == {**after, "target_new": ""}
    assert first.exact_match["reliability"] != second.exact_match["reliability"]


def test_scores_of_generated_texts(talker: Any) -> None:
    found = scored(talker)
    # a: "Rome"; its rephrases give "Oslo, a well known town" and "well known towns".
    # c: "well known towns" for "well known twins".
    assert found.exact_match["reliability"] == [1, 1, 0]
    assert found.token_f1["reliability"] == [1, 1, pytest.approx(2 / 3)]
    assert found.begins["reliability"] == [1, 1, 0]
    assert found.exact_match["generality"] == [0, None, None]
    assert found.exact_match["locality"] == [1, None, None], "it is the unedited model"
    # aliases: the text goes on after the answer; composed: right, and the other is left out.
    assert found.exact_match["portability"] == [0.5, None, None]
    assert found.begins["portability"] == [1, None, None]
    kinds = found.kinds["portability"]
    assert kinds["aliases"]["begins"] == [1, None, None]
    assert kinds["aliases"]["token_f1"] == [pytest.approx(2 / 5), None, None], "1 of 4 words"
    assert kinds["composed"]["exact_match"] == [1, None, None]


def test_an_answer_that_no_generated_text_can_hold_is_scored_teacher_forced_only(
    talker: Any,
) -> None:
    prompt = "The capital of Italy is"
    two = Probe(prompt, ("Oslo, a well known town. London",))
    long = Probe(prompt, ("Oslo, a well known town" * 6,))
    record = EditRecord("a", "The twins", "Rome", portability={"two": (two,), "long": (long,)})
    found = scored(talker, [record])
    assert found.teacher_forced["portability"][0] is not None
    assert found.kinds["portability"]["two"]["teacher_forced"] == [1]
    for scoring in SCORINGS[1:]:
        assert getattr(found, scoring)["portability"] == [None]
        assert getattr(found, scoring)["reliability"] != [None]


def test_a_probe_whose_conditions_fail_is_left_out_and_counted(talker: Any, edited: Any) -> None:
    scorer = Scorer(TOK)
    unedited = scorer.unedited(talker, RECORDS)
    assert unedited["a"]["holds"] == {
        "locality": {"towns": [True], "people": [True]},
        "portability": {"aliases": [True], "composed": [True, False]},
    }
    for model in (talker, edited):  # whatever the edited model knows
        left_out = scorer.score(model, RECORDS, unedited).left_out
        assert left_out == {"locality": 0, "same_subject": 0, "portability": 1}
    wrong = Probe("The capital of France is", ("Oslo",))
    towns = RECORDS[0].locality["towns"][0]
    record = replace(RECORDS[0], locality={"towns": (replace(towns, conditions=(wrong,)),)})
    found = scored(talker, [record])
    assert found.left_out == {"locality": 1, "same_subject": 0, "portability": 1}
    assert found.teacher_forced["locality"] == [None]
    assert found.kinds["locality"] == {}
    assert found.texts[0]["locality"] is None


def test_locality_compares_with_what_the_unedited_model_says(talker: Any, edited: Any) -> None:
    scorer = Scorer(TOK)
    unedited = scorer.unedited(talker, RECORDS)
    found = scorer.score(edited, RECORDS, unedited)
    prompts = ["Vienna is a list of", "The mother tongue of Danielle Darrieux is"]
    before, after = scorer.generate(talker, prompts), scorer.generate(edited, prompts)
    assert before != after
    for kind, old, new in zip(("towns", "people"), before, after, strict=True):
        assert found.kinds["locality"][kind] == {
            "teacher_forced": found.kinds["locality"][kind]["teacher_forced"],
            "exact_match": [exact_match(new, [old]), None, None],
            "token_f1": [token_f1(new, [old]), None, None],
            "begins": [float(first_word(new) == first_word(old)), None, None],
        }
    mean = sum(kind["token_f1"][0] or 0 for kind in found.kinds["locality"].values()) / 2
    assert found.token_f1["locality"] == [pytest.approx(mean), None, None]


def test_texts_before_and_after_are_kept(talker: Any, edited: Any) -> None:
    scorer = Scorer(TOK)
    found = scorer.score(edited, RECORDS, scorer.unedited(talker, RECORDS))
    assert [text["id"] for text in found.texts] == ["a", "b", "c"]
    first, second = found.texts[:2]
    assert first["target_new"] == "Rome"
    for name, asked in {
        "prompt": RECORDS[0].prompt,
        "rephrase": RECORDS[0].rephrases[0],
        "locality": "Vienna is a list of",
    }.items():
        (before,) = scorer.generate(talker, [asked])
        (after,) = scorer.generate(edited, [asked])
        assert first[name] == {"asked": asked, "before": before, "after": after}
    assert second["rephrase"] is None and second["locality"] is None


# -- The same subject ------------------------------------------------------------------------------

ITALY = EditRecord(
    "italy",
    "In which country is the city of Lyon? It is in",
    "Oslo",
    locality={
        "Relation_Specificity": (
            Probe("The capital of Italy is", ("Rome",)),
            Probe("The mother tongue of Danielle Darrieux is", ("French",)),
        ),
        "Forgetfulness": (Probe("The capital of France is", ("Paris",)),),
        "towns": (Probe("Vienna is a list of", ("towns",)),),
    },
    subject="Lyon",
)


def test_other_relations_of_the_subject_are_a_metric_of_their_own(talker: Any, edited: Any) -> None:
    scorer = Scorer(TOK)
    unedited = scorer.unedited(talker, [ITALY])
    far = deepcopy(talker)
    with torch.no_grad():
        far.get_parameter("model.layers.1.mlp.down_proj.weight").mul_(-0.5)
    found = scorer.score(far, [ITALY], unedited)

    def alone(kind: str) -> Scores:
        """With the probes of this kind under a name that counts as locality."""
        record = replace(ITALY, subject="", locality={"as any other": ITALY.locality[kind]})
        return scorer.score(far, [record], scorer.unedited(talker, [record]))

    for scoring in SCORINGS:
        values = getattr(found, scoring)
        specific = getattr(alone("Relation_Specificity"), scoring)["locality"]
        towns = getattr(alone("towns"), scoring)["locality"]
        forgotten = getattr(alone("Forgetfulness"), scoring)["locality"]
        assert values["same_subject"] == specific
        assert values["locality"] == towns
        assert found.kinds["same_subject"]["Relation_Specificity"][scoring] == specific
        assert found.kinds["locality"]["Forgetfulness"][scoring] == forgotten
    assert found.kinds["locality"].keys() == {"Forgetfulness", "towns"}
    forced = {kind: alone(kind).teacher_forced["locality"] for kind in ITALY.locality}
    assert len(set(map(tuple, forced.values()))) == 3, "or else they are not told apart"
    assert found.texts[0]["locality"]["asked"] == "Vienna is a list of"
    assert found.texts[0]["same_subject"]["asked"] == "The capital of Italy is"


def test_forgetfulness_alone_is_no_locality(talker: Any, edited: Any) -> None:
    kinds = {"Forgetfulness": ITALY.locality["Forgetfulness"]}
    record = replace(ITALY, subject="", locality=kinds)
    scorer = Scorer(TOK)
    found = scorer.score(edited, [record], scorer.unedited(talker, [record]))
    assert found.teacher_forced["locality"] == found.teacher_forced["same_subject"] == [None]
    assert found.kinds["locality"]["Forgetfulness"]["teacher_forced"] != [None]
    assert found.texts[0]["locality"] is None


def test_a_subject_without_questions_is_asked_the_benchmarks_own(talker: Any, edited: Any) -> None:
    record = replace(RECORDS[0], subject="France")
    asked = [p.prompt for p in with_own_questions(record).locality[OWN_QUESTIONS]]
    scorer = Scorer(TOK)
    unedited = scorer.unedited(talker, [record])
    before = unedited["a"]["locality"][OWN_QUESTIONS]
    texts = scorer.generate(talker, asked)
    assert [known["text"] for known in before] == texts
    assert any(texts)
    for prompt, known in zip(asked, before, strict=True):
        ids = TOK(prompt)["input_ids"]
        if known["text"]:  # its tokens are those of plain greedy decoding
            said = talker.generate(
                torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)),
                max_new_tokens=3, do_sample=False,
            )[0, len(ids) :].tolist()  # fmt: skip
            said = said[: said.index(0)] if 0 in said else said
            assert known["tokens"] == said
        else:
            assert known["tokens"] == []
    same = scorer.score(talker, [record], unedited)
    assert [getattr(same, scoring)["same_subject"] for scoring in SCORINGS] == [[1]] * 4
    assert same.teacher_forced["locality"] == [1]
    found = scorer.score(edited, [record], unedited)
    shares = []
    for prompt, known in zip(asked, before, strict=True):
        if known["tokens"]:
            ids = TOK(prompt)["input_ids"]
            with torch.no_grad():
                logits = edited(torch.tensor([ids + known["tokens"]])).logits[0]
            best = logits.argmax(-1).tolist()[len(ids) - 1 : -1]
            right = sum(a == b for a, b in zip(best, known["tokens"], strict=True))
            shares.append(right / len(best))
    assert found.teacher_forced["same_subject"] == [pytest.approx(sum(shares) / len(shares))]
    assert found.teacher_forced["same_subject"] != [1]
    plain = scorer.score(edited, RECORDS[:1], scorer.unedited(talker, RECORDS[:1]))
    for metric in set(METRICS) - {"same_subject"}:
        assert found.teacher_forced[metric] == plain.teacher_forced[metric]
    assert plain.teacher_forced["same_subject"] == plain.leaks == [None], "it has no subject"


def test_where_the_unedited_model_stops_at_once_it_is_not_asked(talker: Any, edited: Any) -> None:
    silent = deepcopy(talker)
    with torch.no_grad():  # whatever it reads, it ends the text
        silent.lm_head = torch.nn.Linear(32, 420)
        silent.lm_head.weight.zero_()
        silent.lm_head.bias.zero_()[0] = 1
    record = replace(RECORDS[0], subject="France")
    scorer = Scorer(TOK)
    unedited = scorer.unedited(silent, [record])
    assert {len(b["tokens"]) for b in unedited["a"]["locality"][OWN_QUESTIONS]} == {0}
    found = scorer.score(edited, [record], unedited)
    assert found.teacher_forced["same_subject"] == found.leaks == [None]
    assert found.kinds["same_subject"] == {}


class Says(torch.nn.Module):
    """A model whose next token hangs on the last one: `after` it, or else `other`."""

    def __init__(self, model: Any, after: dict[int, int], other: int) -> None:
        super().__init__()
        self.model, self.after, self.other = model, after, other

    def forward(self, input_ids: Any, **_: Any) -> torch.Tensor:
        best = input_ids.clone().apply_(lambda token: self.after.get(token, self.other))
        return torch.nn.functional.one_hot(best, 420).float()

    def generate(self, **inputs: Any) -> Any:
        return self.model.generate(**inputs)


def test_leaks_are_the_questions_that_the_target_newly_begins(talker: Any) -> None:
    questions = ["The twins of", "The twins is", "The twins list", "The twins London"]
    of, is_, list_, london = (TOK(question)["input_ids"][-1] for question in questions)
    assert len({of, is_, list_, london}) == 4
    rome, oslo, town = (TOK(text)["input_ids"][0] for text in (" Rome", " Oslo", " town"))

    def record(name: str, target: str, kind: str, *asked: str) -> EditRecord:
        probes = tuple(Probe(prompt, ("Lisbon",)) for prompt in asked)
        return EditRecord(name, "London", target, subject="London", locality={kind: probes})

    records = [
        record("four", "Rome, of course", "Relation_Specificity", *questions),
        record("two", "Rome", "Relation_Specificity", *questions[1:3]),
        record("other", "Oslo", "Relation_Specificity", *questions),
        replace(record("none", "Rome", "near", *questions), subject=""),
    ]
    # After "list" the unedited model begins with Rome as well; after "London" neither does.
    before = Says(talker, {list_: rome}, oslo)
    after = Says(talker, {of: rome, is_: rome, list_: rome}, town)
    scorer = Scorer(TOK)
    unedited = scorer.unedited(before, records)
    assert scorer.score(before, records, unedited).leaks == [0, 0, 0, None]
    assert scorer.score(after, records, unedited).leaks == [2 / 4, 1 / 2, 0, None]


def test_of_a_methods_own_words_the_target_leaks_into_the_question(talker: Any) -> None:
    """What is asked is the question in the method's words; the first token follows those."""
    (is_,), (rome, oslo) = (TOK(text)["input_ids"] for text in (" is", " Rome Oslo"))
    record = EditRecord(
        "a", "London", "Rome", subject="London",
        locality={"Relation_Specificity": (Probe("The twins of", ("Lisbon",)),)},
    )  # fmt: skip
    model = Says(talker, {is_: rome}, oslo)
    scorer = Scorer(TOK)
    unedited = scorer.unedited(model, [record])
    assert scorer.score(model, [record], unedited).leaks == [0]
    assert scorer.score(model, [record], unedited, ask=lambda p: f"{p} is").leaks == [1]


# -- Teacher-forced -------------------------------------------------------------------------------


def test_teacher_forced_scores_by_hand(talker: Any) -> None:
    scorer = Scorer(TOK)
    ids = TOK("Vienna is a list of well known twins")["input_ids"]
    start = len(TOK("Vienna is a list of")["input_ids"])
    with torch.no_grad():
        best = talker(torch.tensor([ids])).logits[0].argmax(-1).tolist()[start - 1 : -1]
    pairs = [("Vienna is a list of", "well known twins")]
    assert scorer.teacher_forced(talker, pairs) == [Forced(ids[start:], best)]
    right = sum(a == b for a, b in zip(ids[start:], best, strict=True))
    assert 0 < right < len(best)
    assert scored(talker).teacher_forced["reliability"][2] == right / len(best)
    assert scored(talker).teacher_forced["locality"] == [1, None, None]


def test_what_has_no_answer_is_not_scored(talker: Any) -> None:
    assert Forced([], []).accuracy is None
    first, longer = Scorer(TOK).teacher_forced(talker, [("", "Rome"), ("", "Rome is")])
    assert first.accuracy is None, "nothing comes before the answer's only token"
    assert len(longer.wanted) == 1
    record = EditRecord("a", "The twins", "Rome", portability={"none": (Probe("London", ()),)})
    found = scored(talker, [record])
    for scoring in SCORINGS:
        assert getattr(found, scoring)["portability"] == [None]


def test_tokens_that_are_not_there_do_not_agree() -> None:
    assert Forced([1, 2, 3], [1, 0, 3]).accuracy == pytest.approx(2 / 3)
    assert Forced([1, 2], [1]).accuracy == 0.5


def test_scores_are_those_of_easyedit(
    talker: Any, edited: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # EasyEdit writes logs/ into the working folder
    compare = host_comparison()
    assert {0, 1} < compare(talker, edited, TOK, RECORDS)
    gpt2 = AutoModelForCausalLM.from_pretrained(tiny_gpt2(tmp_path / "tiny-gpt2")).eval()
    other = deepcopy(gpt2)
    with torch.no_grad():
        other.get_submodule("transformer.h.2.mlp.c_proj").weight.mul_(0.6)
    # Of several prompts EasyEdit pads all but the longest, which GPT-2's positions see.
    alone = [replace(record, portability={}) for record in RECORDS]
    assert len(compare(gpt2, other, TOK, alone)) > 1


class LooksAtTheEnd(torch.nn.Module):
    """As methods do that find an edit by the last token of a text: half of them are edited."""

    def __init__(self, model: Any, edited: Any) -> None:
        super().__init__()
        self.model, self.edited = model, edited

    def forward(self, input_ids: Any, **inputs: Any) -> torch.Tensor:
        hit = (input_ids[:, -1] % 2 == 0)[:, None, None]
        plain, other = (m(input_ids=input_ids, **inputs).logits for m in (self.model, self.edited))
        return torch.where(hit, other, plain)

    def generate(self, **inputs: Any) -> Any:
        return self.model.generate(**inputs)


def test_scores_are_those_of_easyedit_also_where_a_method_looks_at_the_answers_last_token(
    talker: Any, edited: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    compare = host_comparison()
    assert {0, 1} < compare(talker, LooksAtTheEnd(talker, edited), TOK, RECORDS, one_by_one=True)


def test_scores_of_smollm2_are_those_of_easyedit(
    smollm2: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    compare = host_comparison()
    model, tok = smollm2
    records = [
        EditRecord(
            str(i),
            f"The capital of {country} is",
            city,
            rephrases=(f"Q: Which town is the capital of {country}? A:",),
            locality={
                "neighbour": (
                    Probe("The capital of Spain is", ("Madrid",)),
                    Probe("The mother tongue of Emmanuel Macron is", ("French",)),
                ),
                "other": (Probe("The largest planet is", ("Jupiter, of course",)),),
                "Relation_Specificity": (Probe(f"The currency of {country} is", ("the euro",)),),
                "Forgetfulness": (Probe(f"Another capital of {country} was", ("Bordeaux",)),),
            },
            portability={"hop": (Probe(f"In the capital of {country} they speak", ("Finnish",)),)},
        )
        for i, (country, city) in enumerate([("France", "Reykjavik"), ("Japan", "Kuala Lumpur")])
    ]
    name = "model.layers.20.mlp.down_proj.weight"
    weight = model.get_parameter(name)
    original = weight.detach().clone()
    changed = deepcopy(model)
    weight = changed.get_parameter(name)
    for record in records[:1] * 2:  # fine-tuned on one of the two
        ids = tok(f"{record.prompt} {record.target_new}", return_tensors="pt")["input_ids"]
        start = len(tok(record.prompt)["input_ids"])
        labels = ids.masked_fill(torch.arange(ids.shape[1]) < start, -100)
        (gradient,) = torch.autograd.grad(changed(ids, labels=labels).loss, weight)
        with torch.no_grad():
            weight.sub_(gradient, alpha=2.0 / gradient.norm().item())
    assert not torch.equal(original, weight)
    assert len(compare(model, changed, tok, records)) > 2


def test_an_answer_without_tokens_counts_neither_there_nor_here(
    smollm2: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    host_comparison()
    model, tok = smollm2
    nothing = Probe("London ", ("",))
    assert len(tok("London  ")["input_ids"]) == len(tok("London ")["input_ids"])
    town = Probe("The capital of France is", ("Paris",))
    record = EditRecord("a", "London", "is", portability={"towns": (nothing, town)})
    with pytest.warns(RuntimeWarning):
        theirs = host_scores(model, model, tok, record)
    ours = Scorer(tok).teacher_forced(model, [("London ", ""), (town.prompt, "Paris")])
    assert [forced.accuracy for forced in ours] == [None, theirs["portability"]]


def host_comparison() -> Callable[..., set[Any]]:
    """A check of our scores against those of the host, which gives the values that came up."""
    try:
        load_easyeditor()
    except ImportError as error:
        pytest.skip(str(error))

    def compare(
        unedited: Any,
        edited: Any,
        tok: Any,
        records: Sequence[EditRecord],
        one_by_one: bool = False,
    ) -> set[Any]:
        tok.padding_side = "left"
        # EasyEdit knows one rephrase, and no conditions.
        records = [
            replace(
                record,
                rephrases=record.rephrases[:1],
                portability={
                    kind: tuple(replace(probe, conditions=()) for probe in probes)
                    for kind, probes in record.portability.items()
                },
            )
            for record in records
        ]
        scorer = Scorer(tok, max_new_tokens=1)
        before = scorer.unedited(unedited, records)
        ours = scorer.score(edited, records, before, one_by_one=one_by_one)
        seen = set()
        for i, record in enumerate(records):
            theirs = host_scores(edited, unedited, tok, record)
            for metric in METRICS:
                assert ours.teacher_forced[metric][i] == pytest.approx(theirs[metric])
                seen.add(ours.teacher_forced[metric][i])
            for metric, kinds in ours.kinds.items():
                for kind, values in kinds.items():
                    wanted = theirs["kinds"][metric].get(kind)
                    assert values["teacher_forced"][i] == pytest.approx(wanted)
        return seen - {None}

    return compare


# -- All together ---------------------------------------------------------------------------------


def test_batched_is_as_one_by_one(
    talker: Any, edited: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    unedited = Scorer(TOK).unedited(talker, RECORDS)
    alone = Scorer(TOK).score(edited, RECORDS, unedited, one_by_one=True)
    assert Scorer(TOK).score(edited, RECORDS, unedited) == alone
    assert Scorer(TOK, batch_tokens=40).score(edited, RECORDS, unedited) == alone
    monkeypatch.setattr(passes, "TREE_TOKENS", 40)
    assert Scorer(TOK).score(edited, RECORDS, unedited) == alone


def test_one_by_one_the_model_sees_one_text_at_a_time(talker: Any) -> None:
    rows: list[int] = []
    handle = talker.model.embed_tokens.register_forward_hook(
        lambda _, args, __: rows.append(len(args[0]))
    )
    unedited = Scorer(TOK).unedited(talker, RECORDS)
    assert max(rows) > 1
    rows.clear()
    Scorer(TOK).score(talker, RECORDS, unedited, one_by_one=True)
    handle.remove()
    assert set(rows) == {1}


def test_a_method_may_ask_in_its_own_words(talker: Any) -> None:
    unedited = Scorer(TOK).unedited(talker, RECORDS)
    asked: list[str] = []

    def ask(prompt: str) -> str:
        asked.append(prompt)
        return f"The capital of France is Rome. {prompt}"

    found = Scorer(TOK).score(talker, RECORDS, unedited, ask=ask)
    assert set(asked) >= {RECORDS[0].prompt, *RECORDS[0].rephrases}
    context = [ask(RECORDS[0].prompt)]
    assert found.texts[0]["prompt"]["after"] == Scorer(TOK).generate(talker, context)[0]
    assert found.texts[0]["prompt"]["asked"] == RECORDS[0].prompt
    assert found.texts[0]["prompt"]["before"] == "Rome", "the unedited model is asked plainly"


def test_what_the_unedited_model_says_survives_json(talker: Any, edited: Any) -> None:
    scorer = Scorer(TOK)
    unedited = scorer.unedited(talker, RECORDS)
    again = json.loads(json.dumps(unedited))
    assert again == unedited
    found = scorer.score(edited, RECORDS, again)
    assert found == scorer.score(edited, RECORDS, unedited)
    assert json.loads(json.dumps(asdict(found))) == asdict(found)


def test_dropout_is_off_while_scoring_and_the_mode_stays(talker: Any) -> None:
    model = deepcopy(talker)
    model.config.attention_dropout = 0.9
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.9
    model.train()
    assert scored(model) == scored(talker)
    assert model.training and all(p.requires_grad for p in model.parameters())


# -- Perplexity -----------------------------------------------------------------------------------


def test_perplexity_is_that_of_a_plain_loop(talker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("easyedit_dafnet.bench.scoring.PERPLEXITY_WINDOW", 10)
    passages = [*LEARNT, "The", "London Berlin Madrid Lisbon Vienna Tokyo Oslo Athens"]
    total, count = 0.0, 0
    for passage in passages:
        ids = TOK(passage)["input_ids"]
        for start in range(0, len(ids), 10):
            window = ids[start : start + 10]
            with torch.no_grad():
                log_p = talker(torch.tensor([window])).logits[0].log_softmax(-1)
            for t in range(1, len(window)):
                total -= float(log_p[t - 1, window[t]])
                count += 1
    found = Scorer(TOK).perplexity(talker, passages)
    assert found == (pytest.approx(math.exp(total / count), rel=1e-5), count)


def test_a_broken_models_perplexity_is_infinite(talker: Any) -> None:
    model = deepcopy(talker)
    with torch.no_grad():
        model.lm_head.weight.mul_(1e6)
    assert Scorer(TOK).perplexity(model, LEARNT)[0] == math.inf
    with torch.no_grad():
        model.lm_head.weight.fill_(math.nan)
    assert Scorer(TOK).perplexity(model, LEARNT)[0] == math.inf


def test_perplexity_of_nothing_is_an_error(talker: Any) -> None:
    for passages in ([], ["The"]):
        with pytest.raises(ValueError, match="at least two tokens"):
            Scorer(TOK).perplexity(talker, passages)
