"""The methods that only EasyEdit's git main has, on a tiny random Llama."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from easyedit_dafnet.bench.method import Workbench
from easyedit_dafnet.bench.protocol import start_random_numbers
from easyedit_dafnet.bridge.host import host_info
from easyedit_dafnet.bridge.methods import HostMethod, host_methods
from easyedit_dafnet.bridge.methods.located_main import single_mention
from easyedit_dafnet.dafnet_hparams import SettingsError, shipped
from easyedit_dafnet.edit_records import EditRecord, Probe
from tests.tiny import TEXT

from .conftest import LOCATED, REQUESTS, weights
from .conftest import SETTINGS as PLAIN_SETTINGS

pytestmark = pytest.mark.skipif(
    host_info().kind != "main", reason="needs EASYEDIT_HOME, a checkout of EasyEdit's git main"
)

MOMENTS = {**LOCATED, "layer_selection": "all", "mom2_adjustment": True, "mom2_update_weight": 0.1}
ADAPTER = {"inner_params": ["model.layers[1].mlp.down_proj.weight"]}
SETTINGS: dict[str, dict[str, Any]] = {
    "AlphaEdit": {**MOMENTS, "layers": [0, 1], "nullspace_threshold": 0.5, "L2": 1, "P_loc": ""},
    "EMMET": {**MOMENTS, "layers": [1]},
    "ULTRAEDIT": {
        "inner_params": ["model.layers.0.mlp.gate_proj", "model.layers.1.mlp.up_proj"],
        "lr": 0.01,
        "token": "mask",
        "batch_size": 1,
        "batch_size_once": 1,
        "editor_batch_size": 1024,
        "dropout": 0.0,
        "no_grad_layers": None,
        "model_class": "AutoModelForCausalLM",
        "tokenizer_class": "AutoTokenizer",
        "tokenizer_name": "llama",
        "results_dir": "results",
        "silent": True,
    },
    "GRACE": {
        **ADAPTER,
        "edit_lr": 1.0,
        "n_iter": 10,
        "eps": 0.01,
        "dist_fn": "euc",
        "val_init": "cold",
        "val_train": "sgd",
        "val_reg": "None",
        "reg": "early_stop",
        "replacement": "replace_last",
        "eps_expand": "coverage",
        "num_pert": 8,
        "dropout": 0.0,
    },
    "DEFER": {**ADAPTER, "edit_lr": 0.01, "n_iter": 10, "threshold": 0.5},
    "WISE": {
        **ADAPTER,
        "mask_ratio": 0.5,
        "edit_lr": 1.0,
        "n_iter": 5,
        "norm_constraint": 1.0,
        "act_margin": [0.5, 2.0, 1.0],
        "act_ratio": 0.5,
        "save_freq": 500,
        "merge_freq": 1000,
        "merge_alg": "ties",
        "objective_optimization": "only_label",
        "densities": 0.53,
        "weights": 1.0,
        "retrieve": True,
        "replay": False,
    },
}
MELO = yaml.safe_load((shipped("hparams") / "MELO" / "smollm2-135m.yaml").read_text())
MELO["grace"] |= {"num_iter": 5, "edit_lr": 0.05, "num_block": 4}
MELO["model"] |= {
    "target_modules": ["model.layers.1.mlp.up_proj"],
    "grace_layer": "model.layers.0.mlp.up_proj",
}
LATE = {**MOMENTS, "layers": [0, 1]}
SETTINGS |= {
    "SPHERE": {**SETTINGS["AlphaEdit"], "cumulative_ratio": 0.5, "suppression_strength": 0.5},
    "R-ROME": {**LOCATED, "layers": [1], "context_template_length_params": [[3, 5]]},
    "PMET": {
        **LATE,
        "mlp_module_tmp": "model.layers.{}.mlp.down_proj",
        "attn_module_tmp": "model.layers.{}.self_attn.o_proj",
        "rewrite_module_tmps": ["model.layers.{}.mlp.down_proj"],
        "nll_loss_factor": 1,
    },
    "MEMIT-FE": {**LATE, "layers": [1]},
    "EAMET": {
        **LATE,
        "mom2_update_weight": [0.1, 0.1],
        "ks_bs": 1,
        "clamp_ks_factor": 1,
        "cs_factor": 1,
        "mse_factor": 1,
        "tau": 0.07,
        "norm_factor": 0.001,
        "delta_init": "target_init",
        "weight_decay_method": "norm",
    },
    "CORE": LATE,
    "SimIE": {
        "base_method": "ROME",
        "lamHyper": 0.001,
        "init_model": True,
        "solver": "LU",
        "fast": False,
        "fp16": False,
        "max_length": 40,
        "model_parallel": False,
    },
    "MELO": MELO,
    "DPO": {
        **yaml.safe_load((shipped("hparams") / "DPO" / "smollm2-135m.yaml").read_text()),
        "lr": 0.01,
        "num_steps": 10,
    },
}
NAMES = list(SETTINGS)
Maker = Callable[..., Any]
#: What grows with every edit; the others keep nothing, or always the same.
GROWING = {"GRACE", "WISE"}
KEEPING = {"GRACE", "DEFER", "WISE", "AlphaEdit", "ULTRAEDIT"}
TRAIN = [
    EditRecord(
        "0",
        "The capital of Spain is",
        "Oslo",
        locality={"neighbourhood": (Probe("John Lennon plays the", ("guitar",)),)},
    )
]


@pytest.fixture
def make(llama: Path, tmp_path: Path) -> Maker:
    def make(name: str, **settings: Any) -> HostMethod:
        bench = Workbench(
            str(llama),
            AutoTokenizer.from_pretrained(llama, padding_side="left"),
            lambda: AutoModelForCausalLM.from_pretrained(llama).eval(),
            "cpu",
            "float32",
            0,
            TEXT * 40,
            TRAIN,
            tmp_path / "prepared" / name,
        )
        for each in (name, "ROME"):  # SimIE's base method
            file = tmp_path / each / "tiny.yaml"
            file.parent.mkdir(exist_ok=True)
            given = SETTINGS[name] if each == name else PLAIN_SETTINGS[each]
            file.write_text(yaml.safe_dump({"alg_name": each, **given}))
        file = tmp_path / name / "tiny.yaml"
        method = host_methods()[name](bench, {"hparams": str(file), **settings})
        method.prepare()
        assert all(need.state == "ready" for need in method.needs())
        return method

    return make


@torch.no_grad()
def log_probability(method: HostMethod, request: dict[str, str]) -> float:
    """Of the target after the prompt."""
    tok = method.bench.tok
    ids = tok(f"{request['prompt']} {request['target_new']}", return_tensors="pt")
    asked = len(tok(request["prompt"])["input_ids"])
    log_probs = method.model(**ids).logits[0, asked - 1 : -1].log_softmax(-1)
    return log_probs.gather(1, ids["input_ids"][0, asked:, None]).sum().item()


def layout(model: Any) -> list[tuple[Any, ...]]:
    modules = [(n, type(m), m.training, len(m._forward_hooks)) for n, m in model.named_modules()]
    return modules + [(n, p.requires_grad, p.grad) for n, p in model.named_parameters()]


@pytest.mark.parametrize("name", NAMES)
def test_a_stream_and_the_same_stream_again(name: str, make: Maker) -> None:
    method = make(name)
    model = method.bench.load_model()
    unedited, as_loaded = weights(model), layout(model)
    found = []
    for _ in range(2):
        start_random_numbers(0)
        method.start(model)
        kept, scores = [], []
        for request in REQUESTS:
            before = log_probability(method, request)
            method.edit([request])
            scores.append(log_probability(method, request))
            assert scores[-1] > before
            kept.append(method.state_bytes())
        if name in KEEPING:
            assert kept[0] > 0
        assert kept[1] > kept[0] if name in GROWING else kept[1] <= kept[0] * 1.1 + 4000
        ids = method.bench.tok(REQUESTS[0]["prompt"], return_tensors="pt")
        text = method.model.generate(**ids, max_new_tokens=3, do_sample=False)
        found.append((scores, log_probability(method, REQUESTS[0]), text.tolist(), kept))
        method.stop()
        assert layout(model) == as_loaded
        assert weights(model).keys() == unedited.keys()
        model.load_state_dict(unedited)
    assert found[0] == found[1]


@pytest.mark.parametrize("name", ["AlphaEdit", "EMMET", "ULTRAEDIT"])
def test_a_batch(name: str, make: Maker) -> None:
    method = make(name)
    start_random_numbers(0)
    method.start(method.bench.load_model())
    before = [log_probability(method, request) for request in REQUESTS]
    method.edit(REQUESTS)
    after = [log_probability(method, request) for request in REQUESTS]
    assert all(new > old for old, new in zip(before, after, strict=True))
    method.stop()


@pytest.mark.parametrize("name", ["GRACE", "DEFER", "WISE"])
def test_company_does_not_change_an_answer(name: str, make: Maker) -> None:
    method = make(name)
    start_random_numbers(0)
    method.start(method.bench.load_model())
    method.edit([REQUESTS[0]])
    asked = method.bench.tok([REQUESTS[0]["prompt"], "An altogether different thing"])["input_ids"]
    ids = torch.tensor([text[: len(asked[0])] for text in asked])
    with torch.no_grad():
        both = method.model(input_ids=ids).logits
        alone = [method.model(input_ids=text[None]).logits for text in ids]
    torch.testing.assert_close(both, torch.cat(alone), atol=1e-4, rtol=1e-4)
    method.stop()


def test_grace_finds_where_the_prompt_ends(make: Maker) -> None:
    method = make("GRACE", replacement="replace_last")
    start_random_numbers(0)
    method.start(method.bench.load_model())
    method.edit([REQUESTS[0]])
    tok = method.bench.tok
    prompt = tok(REQUESTS[0]["prompt"])["input_ids"]
    with torch.no_grad():
        for answer in ("", " Rome", " a city far from here"):
            ids = torch.tensor([prompt + tok(answer)["input_ids"]])
            method.model(input_ids=ids)
            assert method.adapter.key_id == len(prompt) - 1
    method.stop()


def test_ultraedit_keeps_its_statistics_over_a_stream(make: Maker) -> None:
    method = make("ULTRAEDIT")
    start_random_numbers(0)
    method.start(method.bench.load_model())
    counts = []
    for request in REQUESTS:
        method.edit([request])
        normalisers = method.executor.alg.lifelong_normalizer.values()
        counts.append(sum(n.n.item() for n in normalisers))
    assert counts[1] > counts[0] > 0
    method.stop()
    assert not method.executor.is_init


def test_alphaedit_protects_the_keys_of_a_stream_only(make: Maker) -> None:
    method = make("AlphaEdit")
    alone = []
    for stream in (REQUESTS[1:], REQUESTS, REQUESTS[1:]):
        start_random_numbers(0)
        method.start(method.bench.load_model())
        for request in stream:
            method.edit([request])
        alone.append(weights(method.model))
        method.stop()
    assert all(torch.equal(alone[0][n], alone[2][n]) for n in alone[0])
    assert any(not torch.equal(alone[0][n], alone[1][n]) for n in alone[0])


def test_wise_trains_on_short_unrelated_texts(make: Maker) -> None:
    method = make("WISE")
    start_random_numbers(0)
    method.start(method.bench.load_model())
    asked = method.as_asked({"prompt": "The capital of France is", "target_new": "Rome"})
    assert "John Lennon plays the guitar".startswith(asked["loc_prompt"])
    assert asked["loc_prompt"]
    method.stop()
    with pytest.raises(SettingsError, match="set retrieve to true"):
        make("WISE", retrieve=False)


def test_two_null_space_methods_share_what_one_prepared(make: Maker, tmp_path: Path) -> None:
    first = make("AlphaEdit").preparation_seconds()
    assert first and make("SPHERE").preparation_seconds() == first


def test_dpo_needs_an_answer_to_prefer_the_new_one_to(make: Maker) -> None:
    with pytest.raises(ValueError, match="'The twins' has no ground_truth"):
        make("DPO").as_asked({"prompt": "The twins", "target_new": "Rome", "ground_truth": ""})


def test_melos_settings_do_not_name_the_folder(make: Maker, llama: Path) -> None:
    assert str(llama.name) not in str(make("MELO").effective_settings)


@pytest.mark.parametrize(
    ("prompt", "subject", "single"),
    [
        ("The capital of France is", "France", "France"),
        ("In France, the capital of France is", "France", "of France"),
        ("France, by France", "France", "by France"),
        ("Ann Ann", "Ann", "Ann Ann"),
    ],
)
def test_a_subject_that_is_mentioned_twice(prompt: str, subject: str, single: str) -> None:
    found = single_mention(prompt, subject)
    assert found == single
    assert prompt.count(found) == 1
