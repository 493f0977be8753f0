"""EasyEdit's methods that change weights and need no training, as far as the PyPI release has them.

The same names in EasyEdit's git main are called in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from .host_method import HostMethod


class FT(HostMethod):
    """Fine-tuning of a few matrices (the baseline of arXiv 2012.00363)."""

    name = "FT"


class KN(HostMethod):
    """Knowledge neurons, arXiv 2104.08696."""

    name = "KN"
    one_request_a_call = True
    # EasyEdit's authors report 0.29 for it on ZsRE with Llama-2-7B (arXiv 2308.07269).
    expects: ClassVar[Mapping[str, float]] = {"reliability": 0.29}
