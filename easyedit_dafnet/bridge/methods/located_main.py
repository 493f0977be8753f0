"""Methods of EasyEdit's git main that write at the subject, beside ROME and MEMIT."""

from __future__ import annotations

import importlib
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar

import torch

from ...bench.cells import read_json, write_json
from ...bench.method import Need, Request
from ...dafnet_hparams import SettingsError
from .host_method import HostMethod, clean_state
from .located import MEMIT, ROME, LocatedMethod
from .state import tensors_in


class UnmarkedMethod(LocatedMethod):
    """Wants the prompt as it is, and takes every mention of the subject for the place to write."""

    def as_asked(self, request: Request) -> dict[str, Any]:
        """The request with a subject that the prompt has once, and that ends as the given one.

        The subject's last token, where the host writes, is that of the last mention.
        """
        super().as_asked(request)  # refuses a prompt without the subject
        return {**request, "subject": single_mention(request["prompt"], request["subject"])}


def single_mention(prompt: str, subject: str) -> str:
    """The last mention of the subject with as many words before it as make it the only one."""
    start, end = prompt.rindex(subject), prompt.rindex(subject) + len(subject)
    while prompt.find(prompt[start:end]) < start:
        start = prompt.rfind(" ", 0, max(start - 1, 0)) + 1
    return prompt[start:end]


class NullSpaceMethod(UnmarkedMethod):
    """Writes into the directions that the inputs of plain text hardly have.

    EasyEdit projects by a file of matrices, one a layer, which it would make on the first edit, and
    write into the working folder. It is made before, by EasyEdit's own function.
    """

    reads_output_embeddings = True
    carries = frozenset({"cache_c"})
    host_module: ClassVar[str]

    def load_hparams(self) -> Any:
        hparams = super().load_hparams()
        layers = "-".join(map(str, hparams.layers))
        hparams.P_loc = str(
            self.moments.folder
            / f"null_space_{self.moments.dataset}_{hparams.mom2_n_samples}_{hparams.mom2_dtype}"
            f"_{hparams.nullspace_threshold}_{layers}.pt"
        )
        return hparams

    def needs(self) -> list[Need]:
        what = "projection onto the null space of plain text's inputs"
        if Path(self.hparams.P_loc).is_file():
            return [*super().needs(), Need(what, "ready")]
        return [*super().needs(), Need(what, "to prepare", "seconds a layer")]

    def prepare(self) -> None:
        super().prepare()
        path = Path(self.hparams.P_loc)
        if path.is_file():
            return
        began = time.perf_counter()
        host = importlib.import_module(self.host_module)
        model = self.bench.load_model()
        model.config._name_or_path = self.bench.model_name
        hparams = self.hparams
        tok = self.bench.tok
        matrices = [host.get_project(model, tok, layer, hparams) for layer in hparams.layers]
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            torch.save(torch.stack(matrices), file)
        seconds = time.perf_counter() - began
        write_json(path.with_suffix(".json"), {"seconds": seconds})
        Path(file.name).replace(path)
        clean_state().put_back()

    def preparation_seconds(self) -> float | None:
        moments = super().preparation_seconds()
        own = read_json(Path(self.hparams.P_loc).with_suffix(".json"))
        return None if moments is None or own is None else moments + own["seconds"]


class AlphaEdit(NullSpaceMethod):
    """arXiv 2410.02355."""

    name = "AlphaEdit"
    host_module = "easyeditor.models.alphaedit.AlphaEdit_main"


class SPHERE(NullSpaceMethod):
    """AlphaEdit with updates kept away from the weights' principal directions."""

    name = "SPHERE"
    host_module = "easyeditor.models.SPHERE.SPHERE_main"


class EMMET(LocatedMethod):
    """arXiv 2403.14236."""

    name = "EMMET"
    reads_output_embeddings = True


class RROME(ROME):
    """ROME with the same keys on both sides of its formula, arXiv 2403.07175."""

    name = "R-ROME"


class PMET(LocatedMethod):
    """arXiv 2308.08742."""

    name = "PMET"
    reads_output_embeddings = True

    def moment_modules(self, hparams: Any) -> list[str]:
        return [m.format(layer) for m in hparams.rewrite_module_tmps for layer in hparams.layers]

    def as_asked(self, request: Request) -> dict[str, Any]:
        """EasyEdit puts a space before the target for models with "gpt" in their name only."""
        asked = super().as_asked(request)
        return {**asked, "target_new": " " + asked["target_new"].lstrip()}


class MEMITFE(LocatedMethod):
    """MEMIT with a target for every layer (EasyEdit's README names no paper)."""

    name = "MEMIT-FE"
    reads_output_embeddings = True


class EAMET(LocatedMethod):
    """MEMIT with keys and residuals aligned (Robust Massive Model Editing, EAMET)."""

    name = "EAMET"
    reads_output_embeddings = True


class CORE(LocatedMethod):
    """arXiv 2505.23026."""

    name = "CORE"
    reads_output_embeddings = True


class SimIE(UnmarkedMethod):
    """Edits of a base method, made to hold together over a stream (ICML 2025).

    EasyEdit takes the base method's settings from the file that stands beside, in the folder of the
    base method's name.
    """

    name = "SimIE"
    BASES: ClassVar[dict[str, type[LocatedMethod]]] = {"ROME": ROME, "MEMIT": MEMIT}

    def load_hparams(self) -> Any:
        hparams = HostMethod.load_hparams(self)
        if hparams.base_method not in self.BASES:
            raise SettingsError(
                f"SimIE is run on {' or '.join(self.BASES)} here, and not on "
                f"{hparams.base_method!r}: set base_method to one of them."
            )
        file = Path(self.settings.get("hparams") or self.default_hparams())
        base_file = file.parents[1] / hparams.base_method / file.name
        self.base = self.BASES[hparams.base_method](self.bench, {"hparams": str(base_file)})
        hparams._base_hparams = self.base.hparams
        return hparams

    def needs(self) -> list[Need]:
        return self.base.needs()

    def prepare(self) -> None:
        self.base.prepare()

    def start(self, model: Any) -> None:
        super().start(model)
        self.hparams._simie_instance = None

    def state_bytes(self) -> int:
        tensors = tensors_in(vars(self.hparams._simie_instance or object()))
        return sum(t.numel() * t.element_size() for t in tensors)
