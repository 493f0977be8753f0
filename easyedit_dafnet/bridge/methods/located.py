"""EasyEdit's methods that write at the subject of a fact."""

from __future__ import annotations

from typing import Any, ClassVar

from ...bench.method import Need, Request
from .host_method import HostMethod
from .moments import SecondMoments


class LocatedMethod(HostMethod):
    """Looks for the subject in the prompt, pads on the right, and may use second moments.

    The settings' `mom2_n_samples` is a number of tokens of the benchmark's plain text here.
    """

    padding_side: ClassVar = "right"

    def load_hparams(self) -> Any:
        hparams = super().load_hparams()
        if modules := self.moment_modules(hparams):
            self.moments = SecondMoments(
                self.bench, modules, hparams.mom2_n_samples, hparams.mom2_dtype
            )
            hparams.stats_dir = str(self.moments.folder)
            hparams.mom2_dataset = self.moments.dataset
        return hparams

    def moment_modules(self, hparams: Any) -> list[str]:
        """The modules whose inputs' second moments are needed."""
        return [hparams.rewrite_module_tmp.format(layer) for layer in hparams.layers]

    def needs(self) -> list[Need]:
        return [self.moments.need()] if self.moment_modules(self.hparams) else []

    def prepare(self) -> None:
        if self.moment_modules(self.hparams):
            self.moments.prepare()

    def preparation_seconds(self) -> float | None:
        """Of what it needs, although methods share it and one of them made it."""
        return self.moments.seconds() if self.moment_modules(self.hparams) else None

    def start(self, model: Any) -> None:
        super().start(model)
        # By this the host looks for the moments' files.
        model.config._name_or_path = self.bench.model_name

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


class ROME(LocatedMethod):
    """One edit of one matrix, arXiv 2202.05262."""

    name = "ROME"
    one_request_a_call = True

    def moment_modules(self, hparams: Any) -> list[str]:
        return super().moment_modules(hparams) if hparams.mom2_adjustment else []


class MEMIT(LocatedMethod):
    """Edits of several matrices, also in batches, arXiv 2210.07229."""

    name = "MEMIT"
    reads_output_embeddings = True
