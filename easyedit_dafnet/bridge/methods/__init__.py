"""EasyEdit's own methods as methods of the benchmark."""

from __future__ import annotations

from collections.abc import Mapping

from .adapters import DEFER, GRACE, MELO, WISE
from .host_method import HostMethod, alg_dict
from .ike import IKE
from .located import MEMIT, ROME, LocatedMethod
from .located_main import CORE, EAMET, EMMET, MEMITFE, PMET, RROME, SPHERE, AlphaEdit, SimIE
from .moments import SecondMoments
from .plain import FT, KN, LoRA
from .plain_main import DPO, UltraEdit
from .trained import MEND, SERAC

__all__ = ["HostMethod", "LocatedMethod", "SecondMoments", "host_methods"]

#: The methods that an adapter of their own is written for.
WRITTEN: tuple[type[HostMethod], ...] = (FT, LoRA, ROME, MEMIT, KN, MEND, SERAC, IKE)
#: Those that only EasyEdit's git main has.
WRITTEN_FOR_MAIN: tuple[type[HostMethod], ...] = (
    *(AlphaEdit, SPHERE, EMMET, RROME, PMET, MEMITFE, EAMET, CORE, SimIE),
    *(UltraEdit, DPO),
    *(GRACE, WISE, DEFER, MELO),
)
_NEEDS_AN_API = "it edits a model behind an API, by a key of OpenAI's, and not one that runs here"
#: Why the others of ALG_DICT cannot be part of the benchmark.
REASONS: Mapping[str, str] = {
    "FT-Api": _NEEDS_AN_API,
    "DeepEdit-Api": _NEEDS_AN_API,
    "QLoRA": "it edits a model that bitsandbytes has loaded in 4 bits, and the benchmark loads one "
    "unquantised model for all methods",
    "DINM": "it detoxifies: a request needs a safe and an unsafe answer to an attack and a text of "
    "general knowledge, which records of facts do not have",
}


def host_methods() -> dict[str, type[HostMethod]]:
    """The methods of the host's ALG_DICT by name; see `HostMethod.unavailable` for each.

    One that no adapter is written for runs with the settings file that it is given.
    """
    written = {method.name: method for method in (*WRITTEN, *WRITTEN_FOR_MAIN)}
    ours = "DAFNet"  # in ALG_DICT once registered
    return {name: written.get(name) or _plain(name) for name in alg_dict() if name != ours}


def _plain(name: str) -> type[HostMethod]:
    def unavailable(cls: type[HostMethod]) -> str | None:
        return REASONS.get(name)

    return type(name, (HostMethod,), {"name": name, "unavailable": classmethod(unavailable)})
