from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

from easyedit_dafnet.bridge import HostInfo
from easyedit_dafnet.bridge.tokenizers import AnyLlamaTokenizer
from tests.tiny import TEXT


def test_byte_level_bpe_is_read_as_it_was_written(llama: Path) -> None:
    tok = AnyLlamaTokenizer.from_pretrained(str(llama))
    expected = AutoTokenizer.from_pretrained(llama)
    assert type(tok) is type(expected)
    for text in [*TEXT, " leading", "two  blanks", "naïve café", ""]:
        assert tok(text)["input_ids"] == expected(text)["input_ids"]
        assert tok.decode(tok(text)["input_ids"]) == text


def test_sentencepiece_is_read_by_the_hosts_own_class(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    (tmp_path / "text").write_text("\n".join(TEXT))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=80,
        model_type="bpe",
        minloglevel=2,
    )
    assert isinstance(AnyLlamaTokenizer.from_pretrained(str(tmp_path)), LlamaTokenizer)


def test_sentencepiece_model_without_its_package_does_no_harm(llama: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("sentencepiece"):
        pytest.skip("sentencepiece is installed")
    folder = shutil.copytree(llama, tmp_path / "llama")
    (folder / "tokenizer.model").touch()
    tok = AnyLlamaTokenizer.from_pretrained(str(folder))
    assert isinstance(tok, PreTrainedTokenizerFast)


def test_instances_are_what_the_release_pads_at_the_left(llama: Path) -> None:
    assert isinstance(AnyLlamaTokenizer.from_pretrained(str(llama)), AnyLlamaTokenizer)
    assert not isinstance("text", AnyLlamaTokenizer)


def test_release_uses_it(host: HostInfo) -> None:
    if host.kind != "release":
        pytest.skip("main reads every tokenizer by itself")
    editor = importlib.import_module("easyeditor.editors.editor")
    assert editor.LlamaTokenizer is AnyLlamaTokenizer
