"""EasyEdit's methods that change weights and need no training, as far as the PyPI release has them.

The same names in EasyEdit's git main are called in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ...bench.method import Request
from .host_method import HostMethod


class FT(HostMethod):
    """Fine-tuning of a few matrices (the baseline of arXiv 2012.00363)."""

    name = "FT"


class SubjectMethod(HostMethod):
    """A method that looks for the subject in the prompt, and pads on the right."""

    padding_side: ClassVar = "right"

    def as_asked(self, request: Request) -> dict[str, Any]:
        """The request with the last mention of its subject marked.

        The host would mark every mention, and then refuse a prompt with two. Raises ValueError when
        there is none.
        """
        before, subject, after = request["prompt"].rpartition(request["subject"])
        if not subject:
            raise ValueError(
                f"{self.name} edits at the subject, but the prompt {request['prompt']!r} does not "
                f"contain the subject {request['subject']!r}."
            )
        return {**request, "prompt": f"{before}{{}}{after}"}


class ROME(SubjectMethod):
    """arXiv 2202.05262."""

    name = "ROME"
    one_request_a_call = True


class KN(HostMethod):
    """Knowledge neurons, arXiv 2104.08696."""

    name = "KN"
    one_request_a_call = True
    # EasyEdit's authors report 0.29 for it on ZsRE with Llama-2-7B (arXiv 2308.07269).
    expects: ClassVar[Mapping[str, float]] = {"reliability": 0.29}
