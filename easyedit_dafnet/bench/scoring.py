"""What an edited model makes of the records: teacher-forced, and by what it says of itself.

Teacher forced, a token of the answer counts when the model puts it first, given the prompt and the
answer before it; these are the numbers of EasyEdit's `compute_edit_quality`. Generated, the model
gets the prompt alone and says what it says until it stops: neither the answer nor its length is
given away.

Reliability asks the edit's own prompt, generality its rephrases, portability what follows from the
edit. Locality compares with what the unedited model says, whatever the truth is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ..prompts import with_target
from ..records import answer_start, token_ids
from .answers import begins, can_be_said, exact_match, first_word, token_f1
from .passes import Asked, Passes, context
from .records import EditRecord, Probe

METRICS = ("reliability", "generality", "locality", "portability")
SCORINGS = ("teacher_forced", "exact_match", "token_f1", "begins")

PERPLEXITY_WINDOW = 256  # tokens
LARGEST_EXPONENT = 700  # e to a little more is no float

Number = float | None
Row = Mapping[str, Any]


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
    kinds: {"locality" or "portability": {kind: {scoring: [one number or None a record]}}}.
    texts: one dict a record: id, target_new, and for "prompt", "rephrase" and "locality" (the first
    of each) {"asked", "before", "after"}, or None; before and after are what the unedited and the
    edited model say.
    left_out: the probes of locality and portability whose conditions do not hold.
    """

    teacher_forced: dict[str, list[Number]]
    exact_match: dict[str, list[Number]]
    token_f1: dict[str, list[Number]]
    begins: dict[str, list[Number]]
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

        prompt, rephrases: generated texts. locality: for each kind and probe the generated "text"
        and the most probable "tokens". holds: for "locality" and "portability", each kind and
        probe, whether the model knows all of its conditions.
        """
        asked: list[str] = []
        answered: list[tuple[str, str]] = []
        for record in records:
            asked += [record.prompt, *record.rephrases]
            for probe in _all(record.locality):
                asked.append(probe.prompt)
                answered += [(probe.prompt, answer) for answer in probe.answers[:1]]
            for probe in (*_all(record.locality), *_all(record.portability)):
                asked += [condition.prompt for condition in probe.conditions]
        texts = dict(zip(asked, self.generate(model, asked), strict=True))
        forced = dict(zip(answered, self.teacher_forced(model, answered), strict=True))

        def before(probe: Probe) -> dict[str, Any]:
            tokens = [forced[probe.prompt, a].predicted for a in probe.answers[:1]]
            return {"text": texts[probe.prompt], "tokens": tokens[0] if tokens else []}

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
            (prompt, answer)
            for q, prompt in zip(questions, prompts, strict=True)
            for answer in q.probe.answers[:1]
        ]
        forced = dict(zip(answered, self.teacher_forced(model, answered, one_by_one), strict=True))
        texts = self.generate(model, prompts, one_by_one)
        values: list[dict[str, Number]] = []
        for question, prompt, text in zip(questions, prompts, texts, strict=True):
            answers = [forced[prompt, a] for a in question.probe.answers[:1]]
            said = [a for a in question.probe.answers if self._can_be_said(a)]
            values.append(_values(question, answers[0] if answers else None, said, text))
        return Scores(
            **{
                scoring: {
                    metric: _means(
                        len(records),
                        (
                            (q.record, v[scoring])
                            for q, v in zip(questions, values, strict=True)
                            if q.metric == metric
                        ),
                    )
                    for metric in METRICS
                }
                for scoring in SCORINGS
            },
            kinds=_by_kind(len(records), questions, values),
            texts=_texts(records, unedited, questions, texts),
            left_out=left_out,
        )

    def _can_be_said(self, answer: str) -> bool:
        length = len(self.tok(answer, add_special_tokens=False)["input_ids"])
        return length <= self.max_new_tokens and can_be_said(answer)

    # ---- texts ----------------------------------------------------------------------------------

    def teacher_forced(
        self, model: Any, asked: Sequence[tuple[str, str]], one_by_one: bool = False
    ) -> list[Forced]:
        """For each prompt and answer the answer's tokens, and those that the model puts first.

        The text is prompt and answer, with a space between them where the prompt asks for one, in
        the tokenizer's own tokens; its answer begins where they leave those of the prompt alone.
        """
        unique = list(dict.fromkeys(asked))
        if not unique:
            return []
        prompts = [prompt for prompt, _ in unique]
        wholes = token_ids(self.tok, [with_target(*pair) for pair in unique])
        alone = token_ids(self.tok, prompts)
        starts = [answer_start(*pair) for pair in zip(alone, wholes, strict=True)]
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
    """What is asked of the records, and how many probes are not, for want of their conditions."""
    questions: list[_Question] = []
    left_out = {"locality": 0, "portability": 0}
    for i, record in enumerate(records):
        known = unedited[record.id]
        answers = (record.target_new,)
        questions.append(_Question(i, "reliability", "", Probe(record.prompt, answers)))
        questions += [
            _Question(i, "generality", "", Probe(prompt, answers)) for prompt in record.rephrases
        ]
        for metric in left_out:
            for kind, probes in getattr(record, metric).items():
                for j, probe in enumerate(probes):
                    if not known["holds"][metric][kind][j]:
                        left_out[metric] += 1
                        continue
                    before = known["locality"][kind][j] if metric == "locality" else None
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
    kinds: dict[str, dict[str, dict[str, list[Number]]]] = {"locality": {}, "portability": {}}
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
    found: list[dict[str, Any]] = [
        {"id": r.id, "target_new": r.target_new, "prompt": None, "rephrase": None, "locality": None}
        for r in records
    ]
    names = {"reliability": "prompt", "generality": "rephrase", "locality": "locality"}
    for question, after in zip(questions, texts, strict=True):
        name, row = names.get(question.metric), found[question.record]
        if name is None or row[name] is not None:
            continue
        known = unedited[row["id"]]
        if question.before is not None:
            before = question.before["text"]
        else:
            before = known["prompt"] if name == "prompt" else known["rephrases"][0]
        row[name] = {"asked": question.probe.prompt, "before": before, "after": after}
    return found
