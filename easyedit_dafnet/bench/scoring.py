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
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from ..language_model import at_targets, inference_mode_of
from ..records import context_length
from .records import EditRecord, Probe

METRICS = ("reliability", "generality", "locality", "portability")
SCORINGS = ("teacher_forced", "exact_match", "token_f1", "begins")

# Tokens that share a pass; fewer leave processors idle, more only take memory.
BATCH_TOKENS = {"cpu": 1024}
BATCH_TOKENS_ON_ACCELERATORS = 16384
PERPLEXITY_WINDOW = 256  # tokens

Number = float | None
Row = Mapping[str, Any]


# -- Generated texts ------------------------------------------------------------------------------

_LINE_OR_SENTENCE = re.compile(r"\n|[.!?]+[\"'”’)\]]*(?=\s)|[。！？]")
_AT_THE_END = re.compile(r"[.!?]+[\"'”’)\]]*\s*$")
# A period after an initial or one of these does not end a sentence: "St. Louis", "J. K. Rowling".
_ABBREVIATED = re.compile(r"(?:^|[\s(])(?:(?:[^\W\d_]\.)*[A-Z]|St|Mt|Ft|Dr|Mr|Mrs|Ms|Jr|Sr|No|vs)$")


def natural_stop(text: str) -> int | None:
    """Where a generated text stops for certain: a new line, or a sentence that ends before a space.

    Leading white space is no text yet. None if it may go on.
    """
    start = len(text) - len(text.lstrip())
    for match in _LINE_OR_SENTENCE.finditer(text, start):
        if not (text[match.start()] == "." and _ABBREVIATED.search(text[start : match.start()])):
            return match.start()
    return None


def said(text: str) -> str:
    """A generated text up to its first stop, without white space around it."""
    text = text[: natural_stop(text)].strip().rstrip("\N{REPLACEMENT CHARACTER}")
    return _AT_THE_END.sub("", text).strip()


class _AllHaveStopped(StoppingCriteria):
    """Ends rows whose text has stopped, and with the last of them the batch."""

    def __init__(self, tok: Any, prompt_length: int) -> None:
        self.tok, self.prompt_length = tok, prompt_length
        self.stopped: list[bool] = []

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        rows = input_ids[:, self.prompt_length :].tolist()
        self.stopped = self.stopped or [False] * len(rows)
        going = [i for i, stopped in enumerate(self.stopped) if not stopped]
        texts = _decode(self.tok, [rows[i] for i in going])
        for i, text in zip(going, texts, strict=True):
            self.stopped[i] = natural_stop(text) is not None
        return torch.tensor(self.stopped, device=input_ids.device)


def _decode(tok: Any, rows: Sequence[Sequence[int]]) -> list[str]:
    return tok.batch_decode(rows, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def normalise(text: str) -> str:
    """Lower case, no ASCII punctuation, no articles, single spaces.

    As the evaluation of SQuAD (arXiv 1606.05250) does, but articles stay where nothing else is.
    """
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    without = " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())
    return without or " ".join(text.split())


def exact_match(text: str, answers: Iterable[str]) -> float:
    return float(normalise(text) in {normalise(answer) for answer in answers})


def token_f1(text: str, answers: Iterable[str]) -> float:
    """Harmonic mean of the words' precision and recall, for the answer where it is highest."""
    return max(_f1(normalise(text).split(), normalise(answer).split()) for answer in answers)


def _f1(found: Sequence[str], wanted: Sequence[str]) -> float:
    if not found or not wanted:
        return float(found == wanted)
    shared = (Counter(found) & Counter(wanted)).total()
    return 2 * shared / (len(found) + len(wanted))


def begins(text: str, answers: Iterable[str]) -> float:
    """Whether the text opens with an answer that ends where a word does.

    What a cloze prompt can be judged by, because a model goes on after the answer.
    """
    wanted = {normalise(answer) for answer in answers}
    borders = [m.start() for m in re.finditer(r"[^\w-]|$", text)]
    return float(any(normalise(text[:end]) in wanted for end in borders))


def _first_word(text: str) -> str:
    return " ".join(normalise(text).split()[:1])


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
    the mean over its probes; None where nothing is asked.
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

    def __init__(self, tok: Any, batch_tokens: int | None = None, max_new_tokens: int = 16) -> None:
        self.tok = tok
        self.batch_tokens = batch_tokens
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
            values.append(_values(question, answers[0] if answers else None, text))
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

    # ---- texts ----------------------------------------------------------------------------------

    @torch.no_grad()
    def teacher_forced(
        self, model: Any, asked: Sequence[tuple[str, str]], one_by_one: bool = False
    ) -> list[Forced]:
        """For each prompt and answer the answer's tokens, and those that the model puts first.

        The text is prompt, space, answer, in the tokenizer's own tokens; its answer begins where
        the prompt's tokens, counted alone, end.
        """
        if not asked:
            return []
        unique = list(dict.fromkeys(asked))
        texts = [f"{prompt} {answer}" for prompt, answer in unique]
        encoded = self.tok([*texts, *(prompt for prompt, _ in unique)])["input_ids"]
        lengths = [len(ids) for ids in encoded[len(unique) :]]
        found: dict[tuple[str, str], Forced] = {}
        limit = _context(model)
        rows: list[tuple[int, list[int], int]] = []
        for i, (ids, start) in enumerate(zip(encoded, lengths, strict=False)):
            # The first token has nothing before it that could predict it.
            cut = max(len(ids) - limit, 0)
            start = max(start - cut, 1)
            if start >= len(ids) - cut:
                found[unique[i]] = Forced([], [])
            else:
                rows.append((i, ids[cut:], start))
        rows.sort(key=lambda row: (len(row[1]), row[0]))
        with inference_mode_of(model):
            for batch in self._batches(model, rows, one_by_one, lambda row: len(row[1])):
                ids, mask = _padded([row[1] for row in batch], "right")
                targets = torch.zeros(ids.shape, dtype=torch.bool)
                for target, (_, row_ids, start) in zip(targets, batch, strict=True):
                    target[start - 1 : len(row_ids) - 1] = True
                best = _logits_at(model, ids, mask, targets).argmax(-1).tolist()
                for i, row_ids, start in batch:
                    count = len(row_ids) - start
                    found[unique[i]] = Forced(row_ids[start:], best[:count])
                    del best[:count]
        return [found[pair] for pair in asked]

    @torch.no_grad()
    def generate(self, model: Any, prompts: Sequence[str], one_by_one: bool = False) -> list[str]:
        """What the model says after each prompt: greedy, until it stops of itself.

        It stops at an end token, a new line or the end of a sentence; the stop is left out.
        """
        if not prompts:
            return []
        unique = list(dict.fromkeys(prompts))
        room = _context(model) - self.max_new_tokens
        encoded = [ids[-room:] for ids in self.tok(unique)["input_ids"]]
        rows = sorted(enumerate(encoded), key=lambda row: (len(row[1]), row[0]))
        found: dict[str, str] = {}
        with inference_mode_of(model):
            for batch in self._batches(
                model, rows, one_by_one, lambda row: len(row[1]) + self.max_new_tokens
            ):
                texts = self._generate(model, [ids for _, ids in batch])
                found.update(zip((unique[i] for i, _ in batch), texts, strict=True))
        return [found[prompt] for prompt in prompts]

    def _generate(self, model: Any, rows: Sequence[list[int]]) -> list[str]:
        ids, mask = _padded(rows, "left")
        device = next(model.parameters()).device
        ends = _end_tokens(self.tok, model)
        output = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=self.max_new_tokens,
            # Greedy, whatever the model's own settings are.
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            temperature=1.0,
            top_p=1.0,
            top_k=50,
            eos_token_id=ends or None,
            pad_token_id=ends[0] if ends else 0,
            use_cache=True,
            stopping_criteria=StoppingCriteriaList([_AllHaveStopped(self.tok, ids.shape[1])]),
        )
        new = output[:, ids.shape[1] :].tolist()
        spoken = [
            row[: next((t for t, token in enumerate(row) if token in ends), len(row))]
            for row in new
        ]
        return [said(text) for text in _decode(self.tok, spoken)]

    @torch.no_grad()
    def perplexity(self, model: Any, passages: Sequence[str]) -> tuple[float, int]:
        """Perplexity of plain text, exp of the mean over all tokens, and how many tokens those are.

        Passages are read in windows of 256 tokens that do not overlap, each without what was before
        it; a window's first token is not predicted. Infinite where a model is too broken for a
        float. Raises ValueError when there is nothing to predict.
        """
        size = min(PERPLEXITY_WINDOW, _context(model))
        windows = [
            ids[start : start + size]
            for ids in (self.tok(list(passages))["input_ids"] if passages else [])
            for start in range(0, len(ids), size)
        ]
        windows = sorted((w for w in windows if len(w) > 1), key=len)
        if not windows:
            raise ValueError("Perplexity needs a passage of at least two tokens; there is none.")
        total, count = 0.0, 0
        with inference_mode_of(model):
            for batch in self._batches(model, windows, False, len):
                ids, mask = _padded(batch, "right")
                targets = mask[:, 1:].bool()
                logits = _logits_at(model, ids, mask, F.pad(targets, (0, 1)))
                wanted = ids[:, 1:][targets].to(logits.device)
                total += F.cross_entropy(logits.float(), wanted, reduction="sum").item()
                count += len(wanted)
        mean = total / count
        return (math.exp(mean) if mean < 700 else math.inf), count

    def _batches(
        self,
        model: Any,
        rows: Sequence[Any],
        one_by_one: bool,
        length: Callable[[Any], int],
    ) -> Iterator[Sequence[Any]]:
        """Rows, sorted by length, in groups of at most batch_tokens tokens with their padding."""
        kind = next(model.parameters()).device.type
        most = self.batch_tokens or BATCH_TOKENS.get(kind, BATCH_TOKENS_ON_ACCELERATORS)
        start = 0
        for end in range(1, len(rows) + 1):
            more = end < len(rows) and (end + 1 - start) * length(rows[end]) <= most
            if one_by_one or not more:
                yield rows[start:end]
                start = end


# -- Models ---------------------------------------------------------------------------------------


def _language_model(model: Any) -> Any:
    """The transformers model in what a method returns."""
    return next((m for m in model.modules() if isinstance(m, PreTrainedModel)), model)


def _context(model: Any) -> int:
    return context_length(_language_model(model)) or 2**30


def _end_tokens(tok: Any, model: Any) -> list[int]:
    """All tokens that end a text; chat models have several."""
    config = getattr(_language_model(model), "generation_config", None)
    own = getattr(config, "eos_token_id", None)
    own = own if isinstance(own, list) else [own]
    return [t for t in dict.fromkeys([tok.eos_token_id, *own]) if t is not None]


def _padded(rows: Sequence[Sequence[int]], side: str) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, [n, longest]; padded with 0, which the mask leaves out."""
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        where = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
        ids[i, where] = torch.tensor(row)
        mask[i, where] = 1
    return ids, mask


def _logits_at(model: Any, ids: Tensor, mask: Tensor, targets: Tensor) -> Tensor:
    """Logits at the targets ([n, length], bool), row after row: [number of targets, vocabulary].

    The vocabulary's product is computed there only, where the model is transformers' own.
    """
    device = next(model.parameters()).device
    inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}

    def run() -> Tensor:
        output = model(**inputs)
        return output if isinstance(output, Tensor) else output.logits

    plain = isinstance(model, PreTrainedModel) or hasattr(model, "peft_config")
    if plain and model.get_output_embeddings() is not None:
        with at_targets(model, targets):
            logits = run()
        if logits.shape[:2] == (1, int(targets.sum())):
            return logits[0]
    logits = run()
    return logits[targets.to(logits.device)]


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


def _values(question: _Question, forced: Forced | None, text: str) -> dict[str, Number]:
    """A question's score by each scoring."""
    before, answers = question.before, question.probe.answers
    if before is not None:
        same = agreement(forced.predicted, before["tokens"]) if forced else None
        wanted = [before["text"]]
        first = float(_first_word(text) == _first_word(before["text"]))
        return {
            "teacher_forced": same,
            "exact_match": exact_match(text, wanted),
            "token_f1": token_f1(text, wanted),
            "begins": first,
        }
    if not answers:
        return dict.fromkeys(SCORINGS)
    return {
        "teacher_forced": forced.accuracy if forced else None,
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
