"""What a model says of the facts that it is edited with: before the edits, and after them.

A fact holds where the model, asked greedily, begins with the target. Rephrases ask for it in other
words. Neighbours ask for something else: they are kept where the model's first word is the one that
the unedited model says.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .bench.answers import first_word
from .bench.passes import Passes
from .edit_requests import RequestError, refuse
from .layouts import Notes, flat_probes, without_templates
from .prompts import Wording, chat_form, is_unspaced, question
from .records import AS_GIVEN, token_ids

TOKENS = 8  # that are asked for, or more where the target needs them
AT_ONCE = 128  # questions between two looks at whether to stop
SHOWN = 5  # facts that do not hold, by name
KINDS = {
    "target": "targets are said",
    "rephrase": "rephrases",
    "neighbour": "neighbours kept their answer",
}


@dataclass(frozen=True)
class Question:
    """What is asked of one fact. target: what is to be said; None for neighbours."""

    fact: int
    kind: str
    prompt: str
    target: str | None

    def holds(self, before: str, after: str) -> bool:
        if self.target is None:
            return first_word(before) == first_word(after)
        return says(after, self.target)


def says(text: str, target: str) -> bool:
    """Whether a text begins with a target that ends where a word does."""
    text, target = text.strip(), target.strip()
    rest = text[len(target) :]
    goes_on = target[-1:].isalnum() and rest[:1].isalnum() and not is_unspaced(rest[0])
    return text.startswith(target) and not goes_on


def probes_of(request: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The prompts that ask for the fact in other words, and those that ask for something else.

    Raises RequestError for what is neither a text nor a list of texts.
    """
    # No answer is needed to a neighbour's question: the unedited model gives it.
    flat = flat_probes({**request, "locality_ground_truth": "any"}, Notes())
    fields = without_templates({"prompt": "", "subject": request.get("subject"), **flat})
    probes = [probe for kind in fields["locality"].values() for probe in kind]
    return list(fields["rephrases"]), [probe.prompt for probe in probes]


def check_probes(requests: Sequence[Any]) -> None:
    """Raise RequestError about all requests whose further prompts cannot be used."""
    problems = {}
    for i, request in enumerate(requests):
        try:
            probes_of(request)
        except RequestError as error:
            problems[i] = str(error)
    refuse(requests, problems)


class Check:
    """Asks about requests, and says how many of them hold.

    Args:
        tok: The model's tokenizer.
        requests: The facts in the order of their edits. Of several of one prompt the last counts.
        wording: How they are put to the model.
    """

    def __init__(
        self, tok: Any, requests: Sequence[Mapping[str, Any]], wording: Wording = AS_GIVEN
    ) -> None:
        self.tok, self.requests, self.wording = tok, requests, wording
        self._passes = Passes(tok)
        self._prompts = [self._asked(request["prompt"]) for request in requests]
        self._last = {prompt: i for i, prompt in enumerate(self._prompts)}
        self.questions = [q for i in range(len(requests)) for q in self._of(i)]

    def __len__(self) -> int:
        """How many prompts are asked."""
        return len({q.prompt for q in self.questions})

    def _asked(self, prompt: str | Sequence[Mapping[str, str]]) -> str:
        """A prompt, or messages, as the model is asked."""
        if self.wording.use_chat_template or not isinstance(prompt, str):
            return chat_form(self.tok, prompt)
        return prompt

    def _of(self, i: int) -> list[Question]:
        request = self.requests[i]
        target, (rephrases, neighbours) = request["target_new"], probes_of(request)
        return [
            Question(i, "target", self._prompts[i], target),
            *(Question(i, "rephrase", self._asked(prompt), target) for prompt in rephrases),
            *(Question(i, "neighbour", self._asked(prompt), None) for prompt in neighbours),
        ]

    def ask(self, model: Any, between: Callable[[int], None]) -> dict[str, str]:
        """What the model says to each prompt.

        Args:
            model: In evaluation mode.
            between: Called with the number of answers that are new; it may raise.
        """
        tokens: dict[str, int] = {}
        for q in self.questions:
            # One more than it has shows where it ends.
            needed = len(token_ids(self.tok, [f" {q.target}"])[0]) + 1 if q.target else 0
            tokens[q.prompt] = max(TOKENS, needed, tokens.get(q.prompt, 0))
        encoded = dict(zip(tokens, token_ids(self.tok, list(tokens)), strict=True))
        said: dict[str, str] = {}
        # Those that share a pass are of about one length.
        order = sorted(tokens, key=lambda prompt: (tokens[prompt], len(encoded[prompt])))
        while order:
            most = tokens[order[0]]
            group = [prompt for prompt in order[:AT_ONCE] if tokens[prompt] == most]
            order = order[len(group) :]
            rows = [encoded[prompt] for prompt in group]
            texts = self._passes.continuations(model, rows, most)
            said |= dict(zip(group, texts, strict=True))
            between(len(group))
        return said

    def findings(
        self, before: Mapping[str, str], after: Mapping[str, str], left_out: Container[int] = ()
    ) -> Findings:
        """What holds, but for the requests with the numbers `left_out`, which were not edited."""
        facts: dict[int, dict[str, Any]] = {
            i: {
                "prompt": question(self._prompts[i]),
                "subject": request.get("subject"),
                "target_new": request["target_new"],
                "edited_again": self._last[self._prompts[i]] != i,
                "answers": [],
            }
            for i, request in enumerate(self.requests)
            if i not in left_out
        }
        for q in self.questions:
            if q.fact in facts:
                old, new = before[q.prompt], after[q.prompt]
                answer = {"kind": q.kind, "prompt": q.prompt, "before": old, "after": new}
                facts[q.fact]["answers"].append({**answer, "holds": q.holds(old, new)})
        return Findings(list(facts.values()))


@dataclass(frozen=True)
class Findings:
    """Of each fact what it is and the answers to all that is asked of it, the edit's own first."""

    facts: list[dict[str, Any]]

    def counts(self) -> dict[str, dict[str, int]]:
        """Of each kind of question how many are asked, and how many hold."""
        found = {}
        for kind in KINDS:
            answers = [
                answer["holds"]
                for fact in self.facts
                if not fact["edited_again"]
                for answer in fact["answers"]
                if answer["kind"] == kind
            ]
            found[kind] = {"asked": len(answers), "hold": sum(answers)}
        return found

    @property
    def mostly_hold(self) -> bool:
        targets = self.counts()["target"]
        return 2 * targets["hold"] >= targets["asked"]

    def summary(self) -> str:
        """What holds, in a line."""
        parts = [
            f"{c['hold']} of {c['asked']} {KINDS[kind]}"
            for kind, c in self.counts().items()
            if c["asked"]
        ]
        number = len(self.facts)
        return f"{number} edit{'s' * (number != 1)}: {', '.join(parts)}."

    def examples(self, count: int) -> list[str]:
        """Some facts, with what is said before and after."""
        return [
            f"{fact['prompt']} -> {fact['target_new']}\n   before:{line(answer['before'])}\n"
            f"   after: {line(answer['after'])}"
            for fact in self.facts[:count]
            for answer in fact["answers"][:1]
        ]

    def misses(self) -> list[str]:
        """Facts whose target is not said, SHOWN at most, and how many more there are."""
        missed = [
            f"   not said: {fact['prompt']} -> {fact['target_new']}; but:{line(answer['after'])}"
            for fact in self.facts
            if not fact["edited_again"]
            for answer in fact["answers"][:1]
            if not answer["holds"]
        ]
        more = [f"   and {len(missed) - SHOWN} more"] if len(missed) > SHOWN else []
        return missed[:SHOWN] + more


def line(text: str) -> str:
    """A text of a model as it can be shown: what it says may be anything."""
    return "".join(c if c.isprintable() else " " for c in text)
