"""Against numbers of the authors' own code, where they are at hand."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from easyedit_dafnet.cli import main
from easyedit_dafnet.dafnet_hparams import DAFNetHyperParams
from easyedit_dafnet.dafnet_main import apply_dafnet_to_model

FOLDER = Path(
    os.environ.get("DAFNET_PARITY")
    or Path(__file__).parents[2] / "shared" / "parity" / "tiny-llama"
)
pytestmark = pytest.mark.skipif(
    not (FOLDER / "expected.safetensors").is_file(),
    reason="no reference of the authors' code; set DAFNET_PARITY to its folder",
)


@pytest.fixture(scope="module", params=["paper", "released"])
def hparams(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> DAFNetHyperParams:
    out = tmp_path_factory.mktemp("parity") / "imported"
    arguments = ["import-checkpoint", str(FOLDER / "reference_checkpoint.pt"), str(out)]
    arguments += ["--config", str(FOLDER / "reference_config.yaml"), "--model", str(FOLDER)]
    assert main([*arguments, "--fusion-order", request.param]) == 0
    return DAFNetHyperParams.from_hparams(out / "dafnet.yaml")


def test_edits_one_after_another_are_those_of_the_authors_code(hparams: DAFNetHyperParams) -> None:
    expected = load_file(FOLDER / "expected.safetensors")
    requests = json.loads((FOLDER / "requests.json").read_text())
    tok = AutoTokenizer.from_pretrained(FOLDER)
    model: Any = AutoModelForCausalLM.from_pretrained(FOLDER).eval()
    weights = {m: model.get_submodule(m).weight for m in hparams.inner_params}
    originals = {name: weight.detach().clone() for name, weight in weights.items()}
    with torch.no_grad():
        unedited = model(expected["probe_ids"]).logits
    torch.testing.assert_close(unedited, expected["probe_logits_unedited"], rtol=0, atol=1e-4)
    for i, request in enumerate(requests, 1):
        apply_dafnet_to_model(model, tok, [request], hparams)
        for name, weight in weights.items():
            # Theirs is [d_in, d_out].
            change, wanted = (weight.detach() - originals[name]).T, expected[f"{i}.{name}"]
            assert (change - wanted).norm() <= 1e-4 * wanted.norm(), (i, name)
    with torch.no_grad():
        logits = model(expected["probe_ids"]).logits
    torch.testing.assert_close(logits, expected["probe_logits"], rtol=0, atol=1e-4)
    assert (logits - unedited).abs().max() > 0.01
