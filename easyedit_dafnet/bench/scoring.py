"""What an edited model makes of the records: teacher-forced, and by what it says of itself.

Teacher forced, a token of the answer counts when the model puts it first, given the prompt and the
answer before it; these are the numbers of EasyEdit's `compute_edit_quality`. Generated, the model
gets the prompt alone and says what it says until it stops: neither the answer nor its length is
given away.

Reliability asks the edit's own prompt, generality its rephrases, portability what follows from the
edit. Locality compares with what the unedited model says, whatever the truth is: of other subjects,
and, as a metric of its own, of other relations of the edited subject.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ..edit_records import EditRecord, Probe
from ..prompts import with_target
from ..records import answer_start, token_ids
from .answers import begins, can_be_said, exact_match, first_word, token_f1
from .passes import Asked, Passes, context, end_tokens
from .same_subject import OWN_TOKENS, SAME_SUBJECT, UNCOUNTED, with_own_questions

METRICS = ("reliability", "generality", "locality", "same_subject", "portability")
BY_KIND = ("locality", "same_subject", "portability")
SCORINGS = ("teacher_forced", "exact_match", "token_f1", "begins")

PERPLEXITY_WINDOW = 256  # tokens
LARGEST_EXPONENT = 700  # e to a little more is no float

Number = float | None
Row = Mapping[str, Any]
Answer = str | tuple[int, ...]
"""A text, or tokens that go on behind the prompt's."""


# -- What is asked and what comes of it -----------------------------------------------------------


@dataclass(frozen=True)
class Forced:
    """The tokens of an answer, and those that the model puts first in their places."""

    wanted: list[int]
    predicted: list[int]

    @property
    def accuracy(self) -> Number:
        return agreement(self.predicted, self.wanted)


def agreement(found: Sequence[int], wanted: Sequence[int]) -> Number:
    """The fraction of tokens that agree; None where there are none."""
    longest = max(len(found), len(wanted))
    same = sum(a == b for a, b in zip(found, wanted, strict=False))
    return same / longest if longest else None


@dataclass(frozen=True)
class Scores:
    """Scores of records, in their order.

    teacher_forced, exact_match, token_f1, begins: for each metric of METRICS one number a record,
    the mean over its probes; None where nothing is asked, and by the generated text (the last
    three) where no generated text can hold an answer: it is of several sentences or too long.
    leaks: one number a record, the share of its same-subject questions at which the edited model
    puts the first token of the target first, and the unedited model another; None without any.
    kinds: {metric of BY_KIND: {kind: {scoring: [one number or None a record]}}}; the UNCOUNTED
    kinds are under "locality", of whose mean they are no part.
    texts: one dict a record: id, target_new, and for "prompt", "rephrase", "locality" and
    "same_subject" (the first of each) {"asked", "before", "after"}, or None; before and after are
    what the unedited and the edited model say.
    left_out: the probes of each metric of BY_KIND whose conditions do not hold.
    """

    teacher_forced: dict[str, list[Number]]
    exact_match: dict[str, list[Number]]
    token_f1: dict[str, list[Number]]
    begins: dict[str, list[Number]]
    leaks: list[Number]
    kinds: dict[str, dict[str, dict[str, list[Number]]]]
    texts: list[dict[str, Any]]
    left_out: dict[str, int]


@dataclass(frozen=True)
class _Question:
    """A probe of the record with number `record`. before: what the unedited model says of it."""

    record: int
    metric: str
    kind: str
    probe: Probe
    before: Mapping[str, Any] | None = None

    @property
    def counts(self) -> bool:
        """Whether it is part of its metric's mean."""
        return self.kind not in UNCOUNTED

    @property
    def answer(self) -> Answer | None:
        """What teacher forcing asks for."""
        if self.probe.answers:
            return self.probe.answers[0]
        return tuple(self.before["tokens"]) if self.before is not None else None


class Scorer:
    """Scores models by one tokenizer.

    batch_tokens: tokens that share a pass, padding included (1,024 on a CPU, 16,384 elsewhere).
    max_new_tokens: where a generated text is cut that does not stop of itself.

    Which texts share a batch depends on the texts alone. A text longer than the model's context
    loses its first tokens.
    """

    def __init__(self, tok: Any, batch_tokens: int | None = None, max_new_tokens: int = 24) -> None:
        self.tok = tok
        self._passes = Passes(tok, batch_tokens)
        self.max_new_tokens = max_new_tokens

    # ---- records --------------------------------------------------------------------------------

    def unedited(self, model: Any, records: Sequence[EditRecord]) -> dict[str, dict[str, Any]]:
        """What the unedited model says of the records, by their ids, as JSON.

        prompt, rephrases: generated texts. locality: for each kind and probe, those that the
        benchmark adds included, the generated "text" and the most probable "tokens": in the places
        of the answer's, or without an answer the first that the model says, none where it stops at
        once. holds: for "locality" and "portability", each kind and probe, whether the model knows
        all of its conditions.
        """
        records = [with_own_questions(record) for record in records]
        asked: list[str] = []
        answered: list[tuple[str, Answer]] = []
        unanswered: list[str] = []
        for record in records:
            asked += [record.prompt, *record.rephrases]
            for probe in _all(record.locality):
                asked.append(probe.prompt)
                if probe.answers:
                    answered.append((probe.prompt, probe.answers[0]))
                else:
                    unanswered.append(probe.prompt)
            for probe in (*_all(record.locality), *_all(record.portability)):
                asked += [condition.prompt for condition in probe.conditions]
        texts = dict(zip(asked, self.generate(model, asked), strict=True))
        forced = dict(zip(answered, self.teacher_forced(model, answered), strict=True))
        own = self._own_answers(model, [prompt for prompt in unanswered if texts[prompt]])

        def before(probe: Probe) -> dict[str, Any]:
            if probe.answers:
                tokens = forced[probe.prompt, probe.answers[0]].predicted
            else:
                tokens = own.get(probe.prompt, [])
            return {"text": texts[probe.prompt], "tokens": tokens}

        def holds(probe: Probe) -> bool:
            return all(begins(texts[c.prompt], c.answers) for c in probe.conditions)

        return {
            record.id: {
                "prompt": texts[record.prompt],
                "rephrases": [texts[prompt] for prompt in record.rephrases],
                "locality": _each(record.locality, before),
                "holds": {
                    "locality": _each(record.locality, holds),
                    "portability": _each(record.portability, holds),
                },
            }
            for record in records
        }

    def score(
        self,
        model: Any,
        records: Sequence[EditRecord],
        unedited: Mapping[str, Row],
        ask: Callable[[str], str] = str,
        one_by_one: bool = False,
    ) -> Scores:
        """The scores of the records' edits in the model.

        unedited: of at least these records. ask: the text that asks the model a prompt.
        """
        questions, left_out = _questions(records, unedited)
        prompts = [ask(q.probe.prompt) for q in questions]
        answered = [
            (prompt, q.answer)
            for q, prompt in zip(questions, prompts, strict=True)
            if q.answer is not None
        ]
        found = dict(zip(answered, self.teacher_forced(model, answered, one_by_one), strict=True))
        forced = [
            None if q.answer is None else found[prompt, q.answer]
            for q, prompt in zip(questions, prompts, strict=True)
        ]
        texts = self.generate(model, prompts, one_by_one)
        values: list[dict[str, Number]] = []
        for question, answer, text in zip(questions, forced, texts, strict=True):
            said = [a for a in question.probe.answers if self._can_be_said(a)]
            values.append(_values(question, answer, said, text))
        return Scores(
            **{
                scoring: {
                    metric: _means(
                        len(records),
                        (
                            (q.record, v[scoring])
                            for q, v in zip(questions, values, strict=True)
                            if q.metric == metric and q.counts
                        ),
                    )
                    for metric in METRICS
                }
                for scoring in SCORINGS
            },
            leaks=_means(len(records), self._leaks(records, questions, prompts, forced)),
            kinds=_by_kind(len(records), questions, values),
            texts=_texts(records, unedited, questions, texts),
            left_out=left_out,
        )

    def _leaks(
        self,
        records: Sequence[EditRecord],
        questions: Sequence[_Question],
        prompts: Sequence[str],
        forced: Sequence[Forced | None],
    ) -> Iterator[tuple[int, Number]]:
        """For each same-subject question its record, and 1 where the target leaks, else 0."""
        asked = [
            (q, prompt, answer.predicted[0])
            for q, prompt, answer in zip(questions, prompts, forced, strict=True)
            if q.metric == "same_subject" and answer is not None and answer.predicted
        ]
        targets = self._answers([(prompt, records[q.record].target_new) for q, prompt, _ in asked])
        for (question, _, after), (ids, start) in zip(asked, targets, strict=True):
            before = question.before["tokens"][:1] if question.before is not None else []
            target = ids[start : start + 1]
            yield question.record, float([after] == target != before)

    def _can_be_said(self, answer: str) -> bool:
        length = len(self.tok(answer, add_special_tokens=False)["input_ids"])
        return length <= self.max_new_tokens and can_be_said(answer)

    # ---- texts ----------------------------------------------------------------------------------

    def teacher_forced(
        self, model: Any, asked: Sequence[tuple[str, Answer]], one_by_one: bool = False
    ) -> list[Forced]:
        """For each prompt and answer the answer's tokens, and those that the model puts first.

        The text is prompt and answer, with a space between them where the prompt asks for one, in
        the tokenizer's own tokens; its answer begins where they leave those of the prompt alone. An
        answer in tokens is put behind the prompt's as it is.
        """
        unique = list(dict.fromkeys(asked))
        if not unique:
            return []
        wholes, starts = zip(*self._answers(unique), strict=True)
        answers = [ids[start:] for ids, start in zip(wholes, starts, strict=True)]
        # The last token predicts nothing that is asked. Methods whose texts go one by one may look
        # at it even so, as they do in EasyEdit's scoring.
        end = None if one_by_one else -1
        texts = {
            i: Asked(wholes[i][:end], starts[i] - 1) for i, answer in enumerate(answers) if answer
        }
        best = self._passes.most_probable(model, list(texts.values()), one_by_one)
        predicted = {i: found[: len(answers[i])] for i, found in zip(texts, best, strict=True)}
        found = {pair: Forced(answers[i], predicted.get(i, [])) for i, pair in enumerate(unique)}
        return [found[pair] for pair in asked]

    def _answers(self, pairs: Sequence[tuple[str, Answer]]) -> list[tuple[list[int], int]]:
        """The tokens of each prompt and answer, and where those of the answer begin."""
        alone = token_ids(self.tok, [prompt for prompt, _ in pairs])
        texts = iter(
            token_ids(self.tok, [with_target(p, a) for p, a in pairs if isinstance(a, str)])
        )
        wholes = [
            next(texts) if isinstance(answer, str) else [*ids, *answer]
            for (_, answer), ids in zip(pairs, alone, strict=True)
        ]
        return [(ids, answer_start(ahead, ids)) for ahead, ids in zip(alone, wholes, strict=True)]

    def _own_answers(self, model: Any, prompts: Sequence[str]) -> dict[str, list[int]]:
        """The first tokens of what the model says after each prompt, greedily, up to its end.

        They come by the passes that teacher forcing makes, which give the same tokens again.
        """
        unique = list(dict.fromkeys(prompts))
        starts = dict(zip(unique, token_ids(self.tok, unique), strict=True))
        found: dict[str, list[int]] = {prompt: [] for prompt in unique}
        ends = end_tokens(self.tok, model)
        going = unique
        for _ in range(OWN_TOKENS):
            texts = [[*starts[prompt], *found[prompt]] for prompt in going]
            best = self._passes.most_probable(model, [Asked(ids, len(ids) - 1) for ids in texts])
            said = dict(zip(going, best, strict=True))
            going = [prompt for prompt in going if said[prompt][0] not in ends]
            for prompt in going:
                found[prompt] += said[prompt]
        return found

    def generate(self, model: Any, prompts: Sequence[str], one_by_one: bool = False) -> list[str]:
        """What the model says after each prompt: greedy, until it stops of itself.

        It stops at an end token, a new line or the end of a sentence; the stop is left out.
        """
        unique = list(dict.fromkeys(prompts))
        if not unique:
            return []
        texts = self._passes.generate(
            model, token_ids(self.tok, unique), self.max_new_tokens, one_by_one
        )
        found = dict(zip(unique, texts, strict=True))
        return [found[prompt] for prompt in prompts]

    def perplexity(
        self, model: Any, passages: Sequence[str], one_by_one: bool = False
    ) -> tuple[float, int]:
        """Perplexity of plain text, exp of the mean over all tokens, and how many tokens those are.

        Passages are read in windows of 256 tokens that do not overlap, each without what was before
        it; a window's first token is not predicted. Infinite where a model is too broken for a
        float. Raises ValueError when there is nothing to predict.
        """
        size = min(PERPLEXITY_WINDOW, context(model))
        encoded = token_ids(self.tok, passages)
        windows = [ids[t : t + size] for ids in encoded for t in range(0, len(ids), size)]
        windows = [window for window in windows if len(window) > 1]
        if not windows:
            raise ValueError("Perplexity needs a passage of at least two tokens; there is none.")
        total, count = self._passes.negative_log_likelihood(model, windows, one_by_one)
        mean = total / count
        return (math.exp(mean) if mean < LARGEST_EXPONENT else math.inf), count


# -- Records --------------------------------------------------------------------------------------


def _all(probes: Mapping[str, Sequence[Probe]]) -> list[Probe]:
    return [probe for kind in probes.values() for probe in kind]


def _each(
    probes: Mapping[str, Sequence[Probe]], value: Callable[[Probe], Any]
) -> dict[str, list[Any]]:
    return {kind: [value(probe) for probe in group] for kind, group in probes.items()}


def _questions(
    records: Sequence[EditRecord], unedited: Mapping[str, Row]
) -> tuple[list[_Question], dict[str, int]]:
    """What is asked of the records, and how many probes are not, for want of their conditions.

    Nor is one asked that has no answer and at which the unedited model stops at once.
    """
    questions: list[_Question] = []
    left_out = dict.fromkeys(BY_KIND, 0)
    for i, record in enumerate(map(with_own_questions, records)):
        known = unedited[record.id]
        answers = (record.target_new,)
        questions.append(_Question(i, "reliability", "", Probe(record.prompt, answers)))
        questions += [
            _Question(i, "generality", "", Probe(prompt, answers)) for prompt in record.rephrases
        ]
        for group in ("locality", "portability"):
            for kind, probes in getattr(record, group).items():
                local = group == "locality"
                metric = "same_subject" if local and kind in SAME_SUBJECT else group
                for j, probe in enumerate(probes):
                    if not known["holds"][group][kind][j]:
                        left_out[metric] += 1
                        continue
                    before = known["locality"][kind][j] if local else None
                    if probe.answers or before is None or before["tokens"]:
                        questions.append(_Question(i, metric, kind, probe, before))
    return questions, left_out


def _values(
    question: _Question, forced: Forced | None, answers: Sequence[str], text: str
) -> dict[str, Number]:
    """A question's score by each scoring. answers: those that a generated text can hold."""
    before = question.before
    if before is not None:
        same = agreement(forced.predicted, before["tokens"]) if forced else None
        wanted = [before["text"]]
        first = float(first_word(text) == first_word(before["text"]))
        return {
            "teacher_forced": same,
            "exact_match": exact_match(text, wanted),
            "token_f1": token_f1(text, wanted),
            "begins": first,
        }
    right = forced.accuracy if forced else None
    if not answers:
        return dict.fromkeys(SCORINGS, None) | {"teacher_forced": right}
    return {
        "teacher_forced": right,
        "exact_match": exact_match(text, answers),
        "token_f1": token_f1(text, answers),
        "begins": begins(text, answers),
    }


def _means(count: int, values: Iterable[tuple[int, Number]]) -> list[Number]:
    """The mean of each record's numbers, None for a record without."""
    numbers: list[list[float]] = [[] for _ in range(count)]
    for record, value in values:
        if value is not None:
            numbers[record].append(value)
    return [fmean(n) if n else None for n in numbers]


def _by_kind(
    count: int, questions: Sequence[_Question], values: Sequence[Mapping[str, Number]]
) -> dict[str, dict[str, dict[str, list[Number]]]]:
    pairs = list(zip(questions, values, strict=True))
    kinds: dict[str, dict[str, dict[str, list[Number]]]] = {metric: {} for metric in BY_KIND}
    for metric, found in kinds.items():
        for kind in dict.fromkeys(q.kind for q in questions if q.metric == metric):
            mine = [(q.record, v) for q, v in pairs if (q.metric, q.kind) == (metric, kind)]
            found[kind] = {s: _means(count, ((i, v[s]) for i, v in mine)) for s in SCORINGS}
    return kinds


def _texts(
    records: Sequence[EditRecord],
    unedited: Mapping[str, Row],
    questions: Sequence[_Question],
    texts: Sequence[str],
) -> list[dict[str, Any]]:
    """What the models say before and after, of each record's first prompt of a kind."""
    names = {
        "reliability": "prompt",
        "generality": "rephrase",
        "locality": "locality",
        "same_subject": "same_subject",
    }
    found: list[dict[str, Any]] = [
        {"id": r.id, "target_new": r.target_new} | dict.fromkeys(names.values()) for r in records
    ]
    for question, after in zip(questions, texts, strict=True):
        name, row = names.get(question.metric), found[question.record]
        if name is None or row[name] is not None or not question.counts:
            continue
        known = unedited[row["id"]]
        if question.before is not None:
            before = question.before["text"]
        else:
            before = known["prompt"] if name == "prompt" else known["rephrases"][0]
        row[name] = {"asked": question.probe.prompt, "before": before, "after": after}
    return found
