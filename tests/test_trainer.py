from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from easyedit_dafnet import apply_dafnet_to_model, edited_weights
from easyedit_dafnet.bridge import load_easyeditor
from easyedit_dafnet.checkpoint import load_dafnet
from easyedit_dafnet.dafnet_hparams import (
    DAFNetHyperParams,
    DAFNetTrainingHparams,
    SettingsError,
)
from easyedit_dafnet.models import ModelError
from easyedit_dafnet.trainer import Curriculum, DAFNetTrainer, as_records
from easyedit_dafnet.unedited import joined_signals
from tests.conftest import SOLVED_LLAMA, Subject
from tests.plain import plain_losses, plain_weights
from tests.tiny import LLAMA_MODULES, REQUESTS, TEXT, tiny_llama, tokenizer

TOK = tokenizer()
RECORDS = [
    {
        **request,
        "prefix": "Lisbon is well known.",
        "rephrase_prompt": f"It is well known that {request['prompt']}",
        "locality_prompt": f"Not {request['prompt']}",
        "locality_ground_truth": "Paris",
        "ground_truth": "Paris",
    }
    for request in REQUESTS
]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture
def config(llama: Path, tmp_path: Path) -> Any:
    def make(**changed: Any) -> DAFNetTrainingHparams:
        values: dict[str, Any] = {
            "model_name": str(llama),
            "inner_params": LLAMA_MODULES,
            "device": "cpu",
            "results_dir": str(tmp_path / "results"),
            "layer_n": 1,
            "inner_att_dim": 16,
            "ffn_dim": 24,
            "outer_att_dim": 16,
            "outer_score_att_dim": 8,
            "edit_lr": -0.01,
            "lr_warmup": 0,
            "max_iters": 4,
            "log_interval": 1,
            "passages": None,
            "seq_len_start": 3,
        }
        return DAFNetTrainingHparams(**{**values, **changed})

    return make


def log_of(trainer: DAFNetTrainer) -> list[dict[str, Any]]:
    return [json.loads(line) for line in trainer.log_path.read_text().splitlines()]


# ---- learning -----------------------------------------------------------------------------------


def test_training_learns_and_leaves_the_language_model_alone(config: Any, llama: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(llama)
    model.train()
    model.lm_head.weight.requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    trainer = DAFNetTrainer(
        config(lr=3e-3, lr_lr=1e-3, locality_weight=0.0), RECORDS, model=model, tok=TOK
    )
    trainer.prepare()
    losses = [trainer.train_step(list(RECORDS[:3]))["loss"] for _ in range(30)]
    assert losses[-1] < 0.9 * losses[0]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.training and not model.lm_head.weight.requires_grad
    assert model.get_parameter("model.norm.weight").requires_grad
    assert all(p.grad is None for p in model.parameters())


def test_wrappers_and_modes_change_nothing(config: Any, llama: Path, tmp_path: Path) -> None:
    def trained(name: str, model: Any) -> dict[str, torch.Tensor]:
        settings = config(max_iters=2, results_dir=str(tmp_path / name))
        trainer = DAFNetTrainer(settings, RECORDS, RECORDS[:2], model=model, tok=TOK)
        trainer.run()
        return load_dafnet(trainer.save_path).state_dict()

    plain, other = (AutoModelForCausalLM.from_pretrained(llama) for _ in range(2))
    expected = trained("plain", plain)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found = trained("wrapped", torch.nn.DataParallel(other))
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_torchs_default_type_is_not_that_of_the_networks(config: Any, llama: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama)
    torch.set_default_dtype(torch.float64)
    try:
        trainer = DAFNetTrainer(config(max_iters=2), RECORDS, RECORDS[:2], model=model, tok=TOK)
        trainer.run()
    finally:
        torch.set_default_dtype(torch.float32)
    tensors = load_dafnet(trainer.save_path).state_dict().values()
    assert {t.dtype for t in tensors if t.is_floating_point()} == {torch.float32}


def test_a_model_that_cannot_be_edited_is_refused_before_training(config: Any, llama: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(llama)
    layer = model.get_submodule(LLAMA_MODULES[0])
    layer.weight = torch.nn.Parameter(layer.weight.detach().to(torch.int8), requires_grad=False)
    with pytest.raises(ModelError, match=r"gate_proj is quantised \(Linear, torch\.int8\)"):
        DAFNetTrainer(config(), RECORDS, model=model, tok=TOK)


@pytest.mark.parametrize("train_fusion", [True, False])
@pytest.mark.parametrize("form", ["as they come", "factors", "dense", "unsplit"])
def test_the_step_is_that_of_plain_backpropagation(
    config: Any,
    subject: Subject,
    train_fusion: bool,
    form: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passages = tmp_path / "passages.txt"
    passages.write_text(" ".join(TEXT) + "\n", encoding="utf-8")
    if form in ("factors", "dense"):
        monkeypatch.setattr(edited_weights, "factors_are_cheaper", lambda *_: form == "factors")
    settings = config(
        model_name=str(subject.folder), inner_params=subject.modules, layer_n=2,
        edit_bias=subject.edit_bias, train_fusion=train_fusion, norm_warmup_edits=5,
        reliability_weight=0.1, generality_weight=0.3, locality_weight=0.7, loss_batch_size=3,
        grad_clip=1e9, passages=str(passages), passage_max_tokens=20,
    )  # fmt: skip
    trainer = DAFNetTrainer(settings, RECORDS)
    if form == "unsplit":
        trainer.language_model.split = False
    trainer.prepare()
    assert trainer.language_model.split == (form != "unsplit")
    records = [
        *RECORDS[:3],
        {k: v for k, v in RECORDS[3].items() if k not in ("prefix", "rephrase_prompt")},
        {k: v for k, v in RECORDS[4].items() if not k.startswith("locality")},
    ]
    (passage,) = trainer.passages
    model = deepcopy(trainer.model).eval().requires_grad_(False)
    weights = plain_weights(model, TOK, trainer.dafnet.eval(), records)
    parts = plain_losses(model, TOK, records, passage, weights)
    weight = {"reliability": 0.1, "rephrase": 0.3, "prefix": 0.3, "locality": 0.7}
    weight["passage"] = 0.7
    loss = torch.stack([weight[name] * value for name, value in parts.items()]).sum()
    names, parameters = zip(*trainer.dafnet.named_parameters(), strict=True)
    expected = torch.autograd.grad(loss, parameters, allow_unused=True)
    found: dict[str, torch.Tensor | None] = {}

    def look(*_: Any) -> None:
        found.update({n: p.grad for n, p in trainer.dafnet.named_parameters()})

    trainer.optimizer.register_step_pre_hook(look)
    losses = trainer.train_step(records)
    for name, value in parts.items():
        assert losses[name] == pytest.approx(weight[name] * value.item(), rel=1e-4)
    trained = 0
    for name, wanted in zip(names, expected, strict=True):
        got = found[name]
        # A bias under a softmax has no gradient but for rounding, which depends on the threads.
        if wanted is None or wanted.norm() <= 1e-7:
            assert got is None or got.norm() <= 1e-7, name
            continue
        # Sums of some hundred products in another order, in float32.
        assert got is not None and (got - wanted).norm() <= 1e-4 * wanted.norm() + 1e-9, name
        trained += 1
    assert trained > 40
    fusion = [g for n, g in found.items() if ".fusion.query.weight" in n]
    assert len(fusion) == 4 and all(
        (g is not None and bool(g.any())) == train_fusion for g in fusion
    )


def test_the_language_model_may_be_in_bfloat16(config: Any) -> None:
    losses, gradients = {}, {}
    for half in (False, True):
        trainer = DAFNetTrainer(config(half=half, norm_warmup_edits=5), RECORDS)
        trainer.prepare()
        found: list[torch.Tensor] = []
        trainer.optimizer.register_step_pre_hook(
            lambda *_, t=trainer, found=found: found.extend(
                p.grad.flatten() for p in t.dafnet.parameters() if p.grad is not None
            )
        )
        losses[half] = trainer.train_step(list(RECORDS[:3]))["loss"]
        gradients[half] = torch.cat(found)
        assert trainer.model.dtype == (torch.bfloat16 if half else torch.float32)
        assert {p.dtype for p in trainer.dafnet.parameters()} == {torch.float32}
        assert trainer.language_model.split
        prepared = trainer.unedited.records(RECORDS[:1])[0]
        hidden = prepared.texts["reliability"].hidden
        assert hidden is not None and hidden.dtype == trainer.model.dtype
        assert {s.delta.dtype for s in prepared.signals} == {torch.float32}
    # bfloat16 keeps 8 bits: 0.4 % at each of some dozen operations.
    assert losses[True] == pytest.approx(losses[False], rel=0.01)
    error = (gradients[True] - gradients[False]).norm() / gradients[False].norm()
    assert 0 < error < 0.03


def test_a_gradient_that_is_not_finite_changes_nothing(config: Any) -> None:
    trainer = DAFNetTrainer(config(), RECORDS)
    trainer.prepare()
    with torch.no_grad():
        trainer.dafnet.step_sizes.fill_(1e38)
    before = {k: v.clone() for k, v in trainer.dafnet.state_dict().items()}
    with pytest.raises(FloatingPointError, match="gradient of step 1 is not finite") as error:
        trainer.train_step(list(RECORDS))
    assert "\n" not in str(error.value)
    assert all(torch.equal(v, before[k]) for k, v in trainer.dafnet.state_dict().items())


def test_the_gradient_is_clipped(config: Any) -> None:
    trainer = DAFNetTrainer(config(grad_clip=1e-3), RECORDS)
    trainer.prepare()
    norms = []

    def look(*_: Any) -> None:
        gradients = [p.grad for p in trainer.dafnet.networks.parameters() if p.grad is not None]
        norms.append(torch.cat([g.flatten() for g in gradients]).norm().item())

    trainer.optimizer.register_step_pre_hook(look)
    losses = trainer.train_step(list(RECORDS))
    assert losses["gradient_norm"] > 2e-3, "the norm before clipping is logged"
    assert norms == [pytest.approx(1e-3, rel=1e-3)]


def test_the_same_seed_gives_the_same_losses(config: Any, tmp_path: Path) -> None:
    def losses(name: str, seed: int) -> list[float]:
        folder = str(tmp_path / name)
        trainer = DAFNetTrainer(config(results_dir=folder, seed=seed), RECORDS)
        trainer.run()
        return [line["loss"] for line in log_of(trainer)]

    first = losses("a", 1)
    assert len(first) == 4 and losses("b", 1) == first
    assert losses("c", 2) != first


@pytest.mark.parametrize("warmup", [0, 5])
def test_statistics_are_set_before_training_or_go_on(config: Any, warmup: int) -> None:
    trainer = DAFNetTrainer(config(norm_warmup_edits=warmup), RECORDS)
    trainer.prepare()
    norm: Any = trainer.dafnet.network(trainer.modules[0]).norm
    before = int(norm.count)
    assert (before > 0) == (warmup > 0)
    trainer.train_step(list(RECORDS))
    assert (int(norm.count) > before) == (warmup == 0)


# ---- curriculum ---------------------------------------------------------------------------------


def test_sequences_grow_when_the_loss_no_longer_falls() -> None:
    curriculum = Curriculum(length=1, longest=60, patience=5, rate=0.5, average=1.0)
    for step in range(1, 4):  # a falling average: nothing happens
        curriculum.update(0.1, step)
    assert curriculum.length == 1 and curriculum.minimum_step == 3
    assert curriculum.average == pytest.approx(0.1 + 0.9 / 8)
    for step in range(4, 9):
        curriculum.update(1.0, step)
        assert curriculum.length == 1
    average = curriculum.average
    curriculum.update(1.0, 9)  # six steps after the minimum
    assert curriculum.length == 11, "at least ten more"
    assert curriculum.average == pytest.approx(average + 0.5 * (1 - average) + 0.3)
    assert curriculum.minimum == 10 and curriculum.minimum_step == 9
    curriculum.update(1.0, 10)
    assert curriculum.minimum == curriculum.average, "a new minimum is found at once"


@pytest.mark.parametrize(("length", "longer"), [(1, 11), (40, 50), (100, 125), (900, 1000)])
def test_sequences_grow_by_a_quarter_at_least_ten_and_to_the_limit(
    length: int, longer: int
) -> None:
    curriculum = Curriculum(length=length, patience=0, average=0.5, minimum=0.1)
    curriculum.update(0.5, 1)
    assert curriculum.length == longer
    curriculum = Curriculum(length=1000, patience=0, average=0.5, minimum=0.1)
    curriculum.update(0.5, 1)
    assert (curriculum.length, curriculum.average) == (1000, 0.5)


@pytest.mark.parametrize(("length", "waits"), [(1, 30), (10, 30), (100, 15), (999, 11)])
def test_patience_falls_with_the_decades_of_the_length(length: int, waits: int) -> None:
    curriculum = Curriculum(length=length, patience=30, average=0.5, minimum=0.1)
    step = 0
    while curriculum.length == length:
        step += 1
        curriculum.update(0.5, step)
    assert step in (waits, waits + 1)


def test_a_step_takes_up_to_n_records_of_one_data_set(config: Any) -> None:
    sets = {"zsre": RECORDS[:3], "counterfact": RECORDS[3:]}
    trainer = DAFNetTrainer(config(seq_len_start=4), sets)
    of = {r["prompt"]: name for name, records in sets.items() for r in records}
    drawn = [trainer.batches() for _ in range(100)]
    assert {len({of[r["prompt"]] for r in batch}) for batch in drawn} == {1}
    assert {of[batch[0]["prompt"]] for batch in drawn} == set(sets)
    assert {len(batch) for batch in drawn} == {1, 2, 3, 4}
    assert all(len({r["prompt"] for r in batch}) == len(batch) for batch in drawn)


# ---- data ---------------------------------------------------------------------------------------


def test_records_are_checked_and_named() -> None:
    assert as_records(RECORDS, "train_set") == RECORDS
    with pytest.raises(ValueError, match="train_set, record 1: 'target_new' is missing"):
        as_records([RECORDS[0], {"prompt": "a"}], "train_set")
    record = {k: v for k, v in RECORDS[0].items() if k != "locality_ground_truth"}
    with pytest.raises(
        ValueError, match="val_set, record 1: 'locality_ground_truth' is missing"
    ) as error:
        as_records([RECORDS[0], record], "val_set")
    assert "\n" not in str(error.value)


def test_records_that_are_too_long_are_found_before_training(config: Any) -> None:
    record = {"prompt": "London is " * 40, "target_new": "Rome"}
    with pytest.raises(ValueError, match="train_set 'zsre', record 7: the reliability text of"):
        DAFNetTrainer(config(), {"zsre": [*RECORDS, record]})
    with pytest.raises(ValueError, match="val_set, record 0: the reliability text of"):
        DAFNetTrainer(config(), RECORDS, [record])


def test_biases_that_are_not_there_are_not_edited(config: Any) -> None:
    with pytest.raises(SettingsError, match=r"'edit_bias' is true, but .*gate_proj has no bias"):
        DAFNetTrainer(config(edit_bias=True), RECORDS)


def test_settings_of_another_kind_are_refused(llama: Path) -> None:
    editing = DAFNetHyperParams(model_name=str(llama), inner_params=LLAMA_MODULES, device="cpu")
    with pytest.raises(SettingsError, match="config is a DAFNetHyperParams"):
        DAFNetTrainer(editing, RECORDS)  # type: ignore[arg-type]


def test_easyedits_data_set_can_be_trained_on(
    config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # EasyEdit writes logs/ into the working folder
    try:
        load_easyeditor()
    except ImportError as error:
        pytest.skip(str(error))
    from easyeditor import CounterFactDataset

    (tmp_path / "counterfact.json").write_text(json.dumps(RECORDS))
    settings = config(max_iters=2)
    train = CounterFactDataset(str(tmp_path / "counterfact.json"), config=settings)
    trainer = DAFNetTrainer(config=settings, train_set=train, val_set=train)
    assert trainer.train_sets == {"edits": RECORDS}
    scores = trainer.run()
    assert set(scores) >= {"reliability@1", "generality@1", "locality@10", "score"}
    assert set(log_of(trainer)[0]) >= {"reliability", "rephrase", "locality", "loss"}


def test_passages_are_the_long_lines_of_a_file(config: Any, tmp_path: Path) -> None:
    long = " ".join(TEXT)
    file = tmp_path / "passages.txt"
    file.write_text(f"short line\n\n{long}\n{long} {long}\n", encoding="utf-8")
    trainer = DAFNetTrainer(config(passages=str(file), passage_max_tokens=30), RECORDS)
    trainer.prepare()
    assert [len(text) for text in trainer.passages] == [30, 30]
    losses = trainer.train_step(list(RECORDS))
    assert losses["passage"] > 0
    assert losses["loss"] == pytest.approx(
        sum(losses[k] for k in ("reliability", "rephrase", "prefix", "locality", "passage"))
    )


@pytest.mark.parametrize("generated", [True, False])
def test_passages_are_no_longer_than_the_context(
    config: Any, tmp_path: Path, generated: bool
) -> None:
    file = tmp_path / "passages.txt"
    file.write_text(" ".join(TEXT * 5) + "\n", encoding="utf-8")
    source = "generated" if generated else str(file)
    trainer = DAFNetTrainer(config(passages=source, passage_max_tokens=1000), RECORDS)
    trainer.prepare()
    assert trainer.passages and max(map(len, trainer.passages)) <= 64
    assert trainer.train_step(list(RECORDS))["passage"] > 0


def test_passages_are_generated_by_the_unedited_model(config: Any) -> None:
    trainer = DAFNetTrainer(config(passages="generated", passage_max_tokens=20), RECORDS)
    trainer.prepare()
    assert trainer.passages and max(map(len, trainer.passages)) <= 40
    starts = {tuple(TOK(r["prompt"])["input_ids"][:2]) for r in RECORDS}
    assert {tuple(text.ids[:2].tolist()) for text in trainer.passages} <= starts


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "there is no such file"), ("too short\n", "has no line of more")],
)
def test_passages_that_are_not_there_are_named(
    config: Any, tmp_path: Path, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "passages.txt").write_text(content)
    trainer = DAFNetTrainer(config(passages=str(tmp_path / "passages.txt")), RECORDS)
    with pytest.raises(SettingsError, match=message):
        trainer.prepare()


# ---- results ------------------------------------------------------------------------------------


def test_the_checkpoint_says_where_it_comes_from(config: Any, llama: Path, tmp_path: Path) -> None:
    settings = config(seed=5)
    trainer = DAFNetTrainer(settings, {"zsre": RECORDS[:4], "counterfact": RECORDS[4:]})
    trainer.run()
    assert trainer.save_path == tmp_path / "results" / "models" / "DAFNet" / "tiny-llama"
    content = json.loads((trainer.save_path / "config.json").read_text())
    training = content["training"]
    assert training["settings"]["seed"] == 5 and training["settings"]["max_iters"] == 4
    assert training["settings"]["edit_lr"] == -0.01 and training["step"] == 4
    assert training["records"] == {"zsre": 4, "counterfact": 3}
    assert set(training["versions"]) == {"easyedit_dafnet", "torch", "transformers"}
    weight = trainer.model.get_parameter(f"{LLAMA_MODULES[0]}.weight")
    base = content["base_model"]
    assert (base["name"], base["type"]) == ("tiny-llama", "llama")
    assert base["fingerprint"][LLAMA_MODULES[0]] == pytest.approx(weight.norm().item(), abs=1e-3)
    assert str(llama.parent) not in json.dumps(content), "no path of this machine"
    loaded = load_dafnet(trainer.save_path).state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in trainer.dafnet.state_dict().items())


def test_the_archive_may_be_in_half_precision(config: Any) -> None:
    trainer = DAFNetTrainer(config(archive_dtype="float16"), RECORDS)
    trainer.run()
    trained, kept = trainer.dafnet.state_dict(), load_dafnet(trainer.save_path).state_dict()
    assert any(not torch.equal(kept[k], v) for k, v in trained.items())
    for name, value in trained.items():
        halved = name.startswith("networks.") and value.ndim > 1
        assert value.dtype == kept[name].dtype, "training goes on as it was"
        assert torch.equal(kept[name], value.half().to(value.dtype) if halved else value)


def test_the_best_checkpoint_is_kept(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = DAFNetTrainer(config(val_interval=1, val_seq_lens=[2]), RECORDS, RECORDS[:3])
    results = iter([0.2, 0.6, 0.4, 0.5])
    monkeypatch.setattr(trainer, "validate", lambda: {"score": next(results)})
    assert trainer.run() == {"score": 0.6}
    training = json.loads((trainer.save_path / "config.json").read_text())["training"]
    assert (training["step"], training["validation"]) == (2, {"score": 0.6})


def test_validation_scores_sequences_of_each_length(config: Any) -> None:
    trainer = DAFNetTrainer(config(val_edits=5, val_seq_lens=[1, 5]), RECORDS, RECORDS)
    scores = trainer.validate()
    kinds = ("reliability", "generality", "locality", "score")
    assert set(scores) == {"score", *(f"{kind}@{n}" for kind in kinds for n in (1, 5))}
    assert all(0 <= value <= 1 for value in scores.values())
    assert scores["score"] == pytest.approx((scores["score@1"] + scores["score@5"]) / 2)


def test_records_without_a_text_do_not_lower_its_score(config: Any) -> None:
    bare = [{k: r[k] for k in ("prompt", "target_new")} for r in RECORDS[3:]]
    records = [*RECORDS[:3], *bare]
    trainer = DAFNetTrainer(config(val_seq_lens=[1]), RECORDS, records)
    alone = DAFNetTrainer(config(val_seq_lens=[1]), RECORDS, RECORDS[:3]).validate()
    scores = trainer.validate()
    assert scores["generality@1"] == alone["generality@1"]
    assert scores["locality@1"] == alone["locality@1"] > 0


def test_training_on_leaves_the_archive_alone(config: Any, tmp_path: Path) -> None:
    first = DAFNetTrainer(config(), RECORDS)
    first.run()
    archive = load_dafnet(first.save_path)
    before = {k: v.clone() for k, v in archive.state_dict().items()}
    again = DAFNetTrainer(config(archive=str(first.save_path), lr=1e-2), RECORDS)
    assert all(torch.equal(v, before[k]) for k, v in again.dafnet.state_dict().items())
    again.prepare()
    again.train_step(list(RECORDS))
    assert not all(torch.equal(v, before[k]) for k, v in again.dafnet.state_dict().items())
    same = load_dafnet(first.save_path)
    assert all(torch.equal(v, before[k]) for k, v in same.state_dict().items())
    assert not any(p.requires_grad for p in same.parameters())


# ---- fusion by least squares --------------------------------------------------------------------


@pytest.fixture
def solved_config(config: Any) -> Any:
    def make(**changed: Any) -> DAFNetTrainingHparams:
        values = {
            "inner_params": SOLVED_LLAMA,
            "fusion": "least_squares",
            "directions": 4,
            "norm_layer": "module",
            "norm_warmup_edits": 7,
            "text_tokens": 400,
            "edit_lr": -0.1,
        }
        return config(**{**values, **changed})

    return make


def test_training_of_a_solved_form_learns(solved_config: Any) -> None:
    trainer = DAFNetTrainer(
        solved_config(lr=3e-3, lr_lr=1e-2, locality_weight=0.0), RECORDS, tok=TOK
    )
    trainer.prepare()
    solver = trainer.dafnet.least_squares
    assert solver is not None and (solver.get_buffer("freedom_0") < 1).any()
    weights = solver.log_weights.detach().clone()
    losses = [trainer.train_step(list(RECORDS[:3])) for _ in range(30)]
    assert losses[-1]["loss"] < 0.95 * losses[0]["loss"]
    assert losses[0]["values"] > 0
    assert (solver.log_weights != weights).all()


def test_other_questions_about_the_subject_are_asked_where_they_weigh(solved_config: Any) -> None:
    left, questions = [], ["{} is known for", "The age of {} is"]
    for weight in (0.0, 5.0):
        config = solved_config(
            lr=3e-3, lr_lr=3e-3, same_subject_weight=weight, other_questions=questions
        )
        own = {"same_subject_prompt": "London is", "same_subject_ground_truth": "so"}
        trainer = DAFNetTrainer(config, [{**RECORDS[0], **own}, *RECORDS[1:]], tok=TOK)
        (records,) = trainer.train_sets.values()
        asked = [record.get("same_subject_prompt") for record in records]
        assert all(asked[1::2]) == any(asked) == bool(weight)
        assert asked[0] == (own["same_subject_prompt"] if weight else None)
        trainer.prepare()
        for _ in range(20):
            losses = trainer.train_step(records[:3])
        assert ("same_subject" in losses) == bool(weight)
        judged = DAFNetTrainer(replace(config, same_subject_weight=5.0), RECORDS, tok=TOK)
        judged.dafnet = trainer.dafnet
        (records,) = judged.train_sets.values()
        left.append(judged.train_step(records[:3])["same_subject"])
    assert left[1] < 0.9 * left[0], "the unedited model's answers to them are kept better"


def test_the_penalty_keeps_values_short(solved_config: Any) -> None:
    lengths = []
    for weight in (0.0, 10.0):
        config = solved_config(lr=3e-3, lr_lr=3e-3, value_weight=weight)
        trainer = DAFNetTrainer(config, RECORDS, tok=TOK)
        trainer.prepare()
        for _ in range(10):
            trainer.train_step(list(RECORDS[:3]))
        prepared = trainer.unedited.records(RECORDS)
        values, _ = trainer.dafnet.values(joined_signals(prepared))
        lengths.append(sum(v.norm().item() for v in values))
    assert lengths[1] < 0.9 * lengths[0]


def test_a_solved_form_is_trained_saved_and_edits(solved_config: Any, llama: Path) -> None:
    trainer = DAFNetTrainer(solved_config(val_interval=2), RECORDS, RECORDS[:3], tok=TOK)
    scores = trainer.run()
    assert 0 <= scores["score"] <= 1
    kept = load_dafnet(trainer.save_path)
    assert kept.least_squares is not None and trainer.dafnet.least_squares is not None
    for m in range(2):
        name = f"directions_{m}"
        # Kept in half precision.
        torch.testing.assert_close(
            kept.least_squares.get_buffer(name),
            trainer.dafnet.least_squares.get_buffer(name),
            rtol=1e-3,
            atol=1e-3,
        )
    settings = {f.name for f in fields(DAFNetHyperParams)} & {
        f.name for f in fields(DAFNetTrainingHparams)
    }
    hparams = DAFNetHyperParams(
        **{name: getattr(trainer.config, name) for name in settings - {"archive"}},
        archive=str(trainer.save_path),
    )
    model: Any = AutoModelForCausalLM.from_pretrained(llama)
    before = model.get_parameter(f"{SOLVED_LLAMA[0]}.weight").detach().clone()
    apply_dafnet_to_model(model, TOK, REQUESTS, hparams)
    assert not torch.equal(model.get_parameter(f"{SOLVED_LLAMA[0]}.weight"), before)


def test_directions_that_the_inputs_cannot_tell_apart_are_refused(solved_config: Any) -> None:
    config = solved_config(directions=8, text_tokens=4, norm_warmup_edits=4)
    trainer = DAFNetTrainer(config, RECORDS, tok=TOK)
    with pytest.raises(SettingsError, match="'directions' is 8, but the text and the edits have 8"):
        trainer.prepare()
    trainer = DAFNetTrainer(replace(config, text_tokens=5), RECORDS, tok=TOK)
    trainer.prepare()
    solver = trainer.dafnet.least_squares
    assert solver is not None and solver.log_weights.isfinite().all()


def test_a_solved_form_needs_edits_to_set_its_scale(solved_config: Any) -> None:
    with pytest.raises(SettingsError, match="'norm_warmup_edits' is 0, but least squares"):
        DAFNetTrainer(solved_config(norm_warmup_edits=0), RECORDS, tok=TOK)


def test_the_rates_fall_to_the_end_of_a_cosine(config: Any) -> None:
    trainer = DAFNetTrainer(
        config(lr_schedule="cosine", max_iters=100, lr_warmup=9), RECORDS, tok=TOK
    )
    rates = [trainer.rate(step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[100] == pytest.approx(0.05)
    assert max(rates) == rates[9] and rates[9:] == sorted(rates[9:], reverse=True)
