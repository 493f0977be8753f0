"""What the benchmark edits and asks: the same records for every data set and method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random

RELATION_SPECIFICITY = "Relation_Specificity"
"""KnowEdit's and RippleEdits' kind of locality that asks other relations of the edited subject."""


@dataclass(frozen=True)
class Probe:
    """A question about an edited model.

    prompt: ends where the answer begins. answers: all that count as right; teacher forcing asks for
    the first, and in locality, where there is none, for what the unedited model says. conditions:
    facts that the unedited model must know for the question to be fair (RippleEdits); the probe is
    left out where it does not.
    """

    prompt: str
    answers: tuple[str, ...]
    conditions: tuple[Probe, ...] = ()


@dataclass(frozen=True)
class EditRecord:
    """One edit with the probes that judge it.

    id: unique in its data set. rephrases: the edit's prompt in other words (generality).
    locality, portability: probes by kind, as the data set names the kinds. Locality asks whether
    the model still says what the unedited one says, portability whether consequences hold.
    """

    id: str
    prompt: str
    target_new: str
    subject: str = ""
    ground_truth: str = ""
    rephrases: tuple[str, ...] = ()
    locality: Mapping[str, tuple[Probe, ...]] = field(default_factory=dict)
    portability: Mapping[str, tuple[Probe, ...]] = field(default_factory=dict)

    def prompts(self) -> set[str]:
        """The edit's own, its rephrases and those of its probes."""
        kinds = (*self.locality.values(), *self.portability.values())
        asked = (probe.prompt for probes in kinds for probe in probes)
        return {self.prompt, *self.rephrases, *asked}

    def request(self) -> dict[str, str]:
        """What a method is given. The probes are not for it to see."""
        return {
            "case_id": self.id,
            "prompt": self.prompt,
            "target_new": self.target_new,
            "subject": self.subject,
            "ground_truth": self.ground_truth,
        }

    def flat(self) -> dict[str, str]:
        """For training: the request with a rephrase and a locality probe, if there are any, under
        the names of EasyEdit's CounterFact files, and another question about the subject. Where
        there are several the prompt draws."""
        found, draw = self.request(), Random(self.prompt).choice
        if self.rephrases:
            found["rephrase_prompt"] = draw(self.rephrases)
        if kinds := [probes for probes in self.locality.values() if probes]:
            probe = draw(draw(kinds))
            found["locality_prompt"] = probe.prompt
            found["locality_ground_truth"] = probe.answers[0]
        if specific := self.locality.get(RELATION_SPECIFICITY):
            probe = draw(specific)
            found["same_subject_prompt"] = probe.prompt
            found["same_subject_ground_truth"] = probe.answers[0]
        return found
