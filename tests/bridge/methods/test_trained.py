from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import BertConfig, BertModel

from easyedit_dafnet.bench.method import Workbench
from easyedit_dafnet.bench.protocol import start_random_numbers
from easyedit_dafnet.bridge import load_easyeditor
from easyedit_dafnet.bridge.methods import HostMethod, host_methods
from easyedit_dafnet.bridge.methods.training import EditBatches, in_turn, trainable
from easyedit_dafnet.dafnet_hparams import SettingsError, shipped
from easyedit_dafnet.edit_records import EditRecord, Probe
from tests.tiny import LLAMA_MODULES, tiny_llama, tokenizer

from .conftest import REQUESTS, weights
from .test_plain import first_token_probability, outside_the_weights

RECORDS = [
    EditRecord(
        id=str(i),
        prompt=f"The capital of {country} is",
        target_new=target,
        subject=country,
        ground_truth="Paris",
        rephrases=(f"In {country} the capital is",),
        locality={"neighbours": (Probe(f"The mother tongue of {name} is", (answer,)),)},
    )
    for i, (country, target, name, answer) in enumerate(
        [
            ("France", "Rome", "the twins", "English"),
            ("Italy", "Oslo", "Danielle Darrieux", "French"),
            ("Germany", "well known", "Lyon", "English, not French"),
            ("Lyon", "Lisbon", "the towns", "Rome"),
        ]
    )
]

Trained = Callable[..., HostMethod]


@pytest.fixture
def training_bench(bench: Workbench) -> Workbench:
    return dataclasses.replace(bench, train=RECORDS)


@pytest.fixture
def mend(training_bench: Workbench, tmp_path: Path) -> Trained:
    """Make a MEND for the tiny Llama from the shipped file; keywords overrule single settings."""
    if reason := host_methods()["MEND"].unavailable():
        pytest.skip(reason)

    def make(bench: Workbench = training_bench, **settings: Any) -> HostMethod:
        values = yaml.safe_load((shipped("hparams") / "MEND/smollm2-135m.yaml").read_text())
        values |= {"inner_params": [f"{name}.weight" for name in LLAMA_MODULES]}
        values |= {"max_iters": 6, "rank": 8, "accumulate_bs": 2}
        file = tmp_path / "MEND.yaml"
        file.write_text(yaml.safe_dump(values))
        return host_methods()["MEND"](bench, {"hparams": str(file), **settings})

    return make


def asked(tok: Any, encoded: dict[str, Any], row: int) -> str:
    return tok.decode(encoded["labels"][row][encoded["labels"][row] >= 0])


def test_labels_are_the_targets_where_the_losses_read_them(bench: Workbench) -> None:
    data = EditBatches(trainable(RECORDS), bench.tok, "cpu")
    batch = data.collate_gpt_fn([data[i] for i in range(len(data))])
    for key, prompt in (("edit_inner", "prompt"), ("edit_rephrase", "rephrase_prompt")):
        part = batch[key]
        count = part["labels"].size(1)
        for i, record in enumerate(data.records):
            assert asked(bench.tok, part, i) == " " + record["target_new"]
            text = part["input_ids"][i][part["attention_mask"][i].bool()]
            assert bench.tok.decode(text) == f"{record[prompt]} {record['target_new']}"
            # The loss compares the predictions for the last tokens with the labels.
            last, labels = part["input_ids"][i, -count:], part["labels"][i]
            assert torch.equal(last[labels >= 0], labels[labels >= 0])
    locality = batch["loc"]
    assert locality["labels"].shape == locality["input_ids"].shape
    for i, record in enumerate(data.records):
        assert asked(bench.tok, locality, i) == " " + record["locality_ground_truth"]
        following = torch.roll(locality["input_ids"][i], -1)
        labels = locality["labels"][i]
        assert torch.equal(following[labels >= 0], labels[labels >= 0])


def test_the_labels_of_easyedits_own_data_set_are_others(llama: Path, tmp_path: Path) -> None:
    """What the collation of our own is for."""
    easyeditor = load_easyeditor()
    file = tmp_path / "records.json"
    file.write_text(json.dumps(trainable(RECORDS)))
    config = type("Config", (), {})()
    config.tokenizer_class, config.tokenizer_name = "AutoTokenizer", str(llama)
    config.device, config.max_length, config.alg_name = "cpu", 40, "MEND"
    config.model = config
    theirs = easyeditor.CounterFactDataset(str(file), config=config)
    batch = theirs.collate_gpt_fn([theirs[0], theirs[2]])
    assert asked(theirs.tok, batch["edit_inner"], 0) == RECORDS[0].target_new  # without the space


def test_records_in_turn() -> None:
    records = trainable([*RECORDS, EditRecord("x", "No rephrase", "a"), RECORDS[0]])
    assert len(records) == 5
    order = in_turn(records, 12, seed=1)
    assert len(order) == 12
    assert sorted(r["prompt"] for r in order[:5]) == sorted(r["prompt"] for r in records)
    assert order == in_turn(records, 12, seed=1) != in_turn(records, 12, seed=2)


def test_mend_is_trained_once(mend: Trained, training_bench: Workbench) -> None:
    folder = training_bench.folder
    method = mend()
    assert [need.state for need in method.needs()] == ["to prepare"]
    with pytest.raises(RuntimeError, match="not trained yet"):
        start_random_numbers(0)
        method.start(training_bench.load_model())
    method.prepare()
    assert sorted(file.name for file in folder.iterdir()) == [
        "archive.safetensors",
        "prepared.json",
    ]
    note = json.loads((folder / "prepared.json").read_text())
    assert note["steps"] == 6 and note["records"] == 4 and note["seconds"] > 0
    written = (folder / "archive.safetensors").stat().st_mtime_ns
    again = mend()
    assert [need.state for need in again.needs()] == ["ready"]
    again.prepare()
    assert (folder / "archive.safetensors").stat().st_mtime_ns == written
    assert not list(Path.cwd().glob("results*")) and not list(Path.cwd().glob("logs*"))


def test_mend_is_trained_again_when_something_differs(
    mend: Trained, training_bench: Workbench
) -> None:
    method = mend()
    method.prepare()
    first = method.archive.read()  # type: ignore[attr-defined]
    others = [
        mend(lr=1e-3),
        mend(bench=dataclasses.replace(training_bench, train=RECORDS[:3])),
    ]
    for other in others:
        (need,) = other.needs()
        assert need.state == "to prepare" and "of other settings" in need.detail
    others[0].prepare()
    assert any(not torch.equal(first[n], t) for n, t in others[0].archive.read().items())  # type: ignore[attr-defined]
    method.prepare()  # the same seed, the same networks
    assert all(torch.equal(first[n], t) for n, t in method.archive.read().items())  # type: ignore[attr-defined]


def test_mend_needs_training_records(mend: Trained, bench: Workbench) -> None:
    (need,) = mend(bench=bench).needs()
    assert need.state == "missing" and "rephrase" in need.detail
    with pytest.raises(SettingsError, match="'max_iters'"):
        mend(max_iters=None)


def test_mend_goes_on_from_the_edited_model(mend: Trained, training_bench: Workbench) -> None:
    method, tok = mend(), training_bench.tok
    method.prepare()
    model = training_bench.load_model()
    unedited = weights(model)
    streams, outside = [], []
    for _ in range(2):
        outside.append(outside_the_weights(model, tok))
        start_random_numbers(0)
        method.start(model)
        seen = [weights(model)]
        for request in REQUESTS:
            before = first_token_probability(method.model, tok, request)
            method.edit([request])
            assert first_token_probability(method.model, tok, request) > before
            seen.append(weights(method.model))
        assert method.state_bytes() == 0 and not method.model.training
        method.stop()
        streams.append(seen[-1])
        changed = {n for n in unedited if not torch.equal(unedited[n], seen[-1][n])}
        assert changed == {f"{name}.weight" for name in LLAMA_MODULES}
        # The second edit is neither made on the unedited model nor the first one made again.
        second = seen[2]["model.layers.1.mlp.up_proj.weight"]
        first = seen[1]["model.layers.1.mlp.up_proj.weight"]
        assert not torch.equal(first, second)
        model.load_state_dict(unedited)
        start_random_numbers(0)
        method.start(model)
        method.edit(REQUESTS[1:])
        alone = weights(method.model)["model.layers.1.mlp.up_proj.weight"]
        start = unedited["model.layers.1.mlp.up_proj.weight"]
        assert not torch.allclose(second - first, alone - start, atol=1e-7)
        method.stop()
        model.load_state_dict(unedited)
    outside.append(outside_the_weights(model, tok))
    assert outside[0] == outside[1] == outside[2]
    assert all(torch.equal(streams[0][n], streams[1][n]) for n in unedited)
    assert not any(vars(p).keys() & {"__x__", "__delta__"} for p in model.parameters())


def test_padding_of_a_batch_is_not_learnt(mend: Trained, training_bench: Workbench) -> None:
    """An edit of a batch is the sum of its edits over their tokens, whatever is padded."""
    method, tok = mend(), training_bench.tok
    method.prepare()
    requests = [REQUESTS[0], {**REQUESTS[1], "target_new": "well known towns"}]
    assert len({len(tok(" " + r["target_new"])["input_ids"]) for r in requests}) == 2
    start_random_numbers(0)
    method.start(training_bench.load_model())
    counted = []
    own = method.executor.alg.edit_loss_fn  # type: ignore[attr-defined]

    def count(config: Any, pred: Any, targ: Any, **kwargs: Any) -> Any:
        result = own(config, pred, targ, **kwargs)
        counted.append(int(result["n_tokens"]))
        return result

    method.executor.alg.edit_loss_fn = count  # type: ignore[attr-defined]
    method.edit(requests)
    assert counted == [sum(len(tok(" " + r["target_new"])["input_ids"]) for r in requests)]
    method.stop()


def test_mend_wants_the_models_order(mend: Trained) -> None:
    names = [f"{name}.weight" for name in reversed(LLAMA_MODULES)]
    with pytest.raises(SettingsError, match="in the model's own order"):
        mend(inner_params=names).prepare()


@pytest.fixture
def serac(training_bench: Workbench, tmp_path: Path) -> Trained:
    """Make a SERAC for the tiny Llama; keywords overrule single settings of the shipped file."""
    scope, answers = tmp_path / "tiny-bert", tmp_path / "small-llama"
    config = BertConfig(
        vocab_size=420,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(scope)
    tok = tokenizer()
    tok.add_special_tokens({"sep_token": "<|endoftext|>"})
    tok.save_pretrained(scope)
    tiny_llama(answers, num_hidden_layers=1)
    file = str(shipped("hparams") / "SERAC/smollm2-135m.yaml")
    folders = {"cls_name": str(scope), "small_name": str(answers)}

    def make(**settings: Any) -> HostMethod:
        few = {"max_iters": 4, "accumulate_bs": 2}
        return host_methods()["SERAC"](
            training_bench, {"hparams": file, **few, **folders, **settings}
        )

    return make


def test_serac_names_what_it_needs(serac: Trained) -> None:
    needs = serac(cls_name=None, small_name="nowhere").needs()
    assert [(n.what, n.state) for n in needs] == [
        ("scope classifier", "missing"),
        ("counterfactual model", "missing"),
    ]
    assert "`cls_name`" in needs[0].detail
    assert [need.state for need in serac().needs()] == ["to prepare"]


def test_serac_answers_from_all_its_edits(serac: Trained, training_bench: Workbench) -> None:
    method, tok = serac(), training_bench.tok
    method.prepare()
    assert [need.state for need in serac().needs()] == ["ready"]
    assert {f.name for f in Path.cwd().iterdir()} <= {"tiny-bert", "small-llama", "prepared"}
    model = training_bench.load_model()
    unedited, before = weights(model), outside_the_weights(model, tok)
    question = tok(REQUESTS[0]["prompt"], return_tensors="pt")
    unasked = tok("Vienna", return_tensors="pt")
    with torch.no_grad():
        own = model(**question).logits
        own_answer = model.generate(**question, max_new_tokens=4, do_sample=False)
    streams = []
    for _ in range(2):
        start_random_numbers(0)
        method.start(model)
        held = [method.state_bytes()]
        for request in REQUESTS:
            method.edit([request])
            held.append(method.state_bytes())
        assert held[0] == 0 < held[1] < held[2]
        serac_model = method.model.serac
        assert [text.strip() for text in serac_model.cache_inputs] == [
            f"{r['prompt']} {r['target_new']}" for r in REQUESTS
        ]
        # The first edit's question finds its edit after the second one, too.
        edit = f"{REQUESTS[0]['prompt']} {REQUESTS[0]['target_new']} "
        with torch.no_grad():
            similarity, nearest, _ = serac_model.run_classifier(**question)
            logits = method.model(**question).logits
            context = tok(edit + REQUESTS[0]["prompt"], return_tensors="pt")
            theirs = serac_model.replacement(**context).logits[:, -own.size(1) :]
        assert nearest.item() == 0
        mixed = (1 - similarity) * own.softmax(-1) + similarity * theirs.softmax(-1)
        torch.testing.assert_close(logits.softmax(-1), mixed, atol=1e-5, rtol=1e-4)
        assert similarity.item() > 0.5
        answer = method.model.generate(**question, max_new_tokens=4, do_sample=False)
        assert torch.equal(answer[:, : own.size(1)], question["input_ids"])
        assert not torch.equal(answer, own_answer)
        streams.append([logits, answer, method.model(**unasked).logits])
        long = torch.ones(1, 70, dtype=torch.long)  # longer than the classifier reads
        method.model.serac.model.config.max_position_embeddings = 128
        with torch.no_grad():
            assert torch.equal(method.model(input_ids=long).logits, model(long).logits)
        model.config.max_position_embeddings = 64
        method.stop()
    assert all(torch.equal(a, b) for a, b in zip(*streams, strict=True))
    assert outside_the_weights(model, tok) == before
    assert all(torch.equal(tensor, unedited[name]) for name, tensor in weights(model).items())
