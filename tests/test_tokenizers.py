"""Where edits are written, and what is learnt, with tokenizers of every kind."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import BertTokenizer, GPT2Tokenizer, PreTrainedTokenizerFast

from easyedit_dafnet.records import encode_requests, subject_positions, token_ids

NAMES = [
    "Iran", "Côte d'Ivoire", "José Saramago", "Danielle Darrieux", "New York", "C++", "中国",
    "東京塔", "Łódź", "Москва", "한국", "Apollo 11", "D.C.", "Straße", "🦊 fox",
]  # fmt: skip
BEFORE = ["", "The capital of ", "Iranian and Yorkish: ", "问：", "In 1998, “", "(", "the ", "A  "]
AFTER = [" is", "'s capital is", ", where it rains, has", "的首都是", "? It is", "” was", "", ")"]
TARGETS = ["Lusaka", "纽约", "a red house"]
TEXT = [f"{before}{name}{after}" for name in NAMES for before in BEFORE for after in AFTER]
BEGIN, END = "<s>", "</s>"


def _trained(core: Tokenizer, kind: Any, **settings: Any) -> PreTrainedTokenizerFast:
    special = [BEGIN, END, "[UNK]"]
    core.train_from_iterator(
        [*TEXT, *TARGETS], kind(special_tokens=special, show_progress=False, **settings)
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=BEGIN, eos_token=END, pad_token=END, unk_token="[UNK]"
    )


def byte_level() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return _trained(core, trainers.BpeTrainer, vocab_size=330, initial_alphabet=alphabet)


def sentence_pieces(scheme: str) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.Unigram())
    core.normalizer = normalizers.NFKC()
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    core.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return _trained(core, trainers.UnigramTrainer, vocab_size=220, unk_token="[UNK]")


def merged_pieces() -> PreTrainedTokenizerFast:
    """As Llama 2's: one piece may go from a word to the punctuation behind it."""
    core = Tokenizer(models.BPE(unk_token="[UNK]"))
    core.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)])
    return _trained(core, trainers.BpeTrainer, vocab_size=400)


def word_pieces() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer()
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    return _trained(core, trainers.WordPieceTrainer, vocab_size=300)


def slow_byte_level(folder: Path) -> Any:
    byte_level()._tokenizer.model.save(str(folder))
    return GPT2Tokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), bos_token=BEGIN, eos_token=END,
        unk_token="[UNK]", pad_token=END,
    )  # fmt: skip


def slow_word_pieces(folder: Path) -> Any:
    word_pieces()._tokenizer.model.save(str(folder))
    return BertTokenizer(
        str(folder / "vocab.txt"), unk_token="[UNK]", cls_token=BEGIN, sep_token=END, pad_token=END
    )


KINDS: dict[str, Callable[[Path], Any]] = {
    "byte-level": lambda _: byte_level(),
    "pieces with a first space": lambda _: sentence_pieces("always"),
    "pieces without": lambda _: sentence_pieces("never"),
    "merged pieces": lambda _: merged_pieces(),
    "word pieces": lambda _: word_pieces(),
    "slow byte-level": slow_byte_level,
    "slow word pieces": slow_word_pieces,
}


@pytest.fixture(params=KINDS, scope="module")
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return KINDS[request.param](tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(params=["$A", "<s> $A", "$A </s>", "<s> $A </s>"])
def tok(request: pytest.FixtureRequest, kind: Any) -> Any:
    """With what it puts around every text; slow tokenizers as they are."""
    if kind.is_fast:
        tokens = [(token, kind.convert_tokens_to_ids(token)) for token in (BEGIN, END)]
        kind._tokenizer.post_processor = processors.TemplateProcessing(
            single=request.param, special_tokens=tokens
        )
    elif request.param != "$A":
        pytest.skip("a slow tokenizer has no template")
    return kind


def shown(text: str) -> str:
    """Without what tokenizers add, drop or change: spaces, accents, case, halves of characters."""
    parts = unicodedata.normalize("NFKD", text).casefold()
    return "".join(
        c for c in parts if not (c.isspace() or unicodedata.combining(c) or c == "\ufffd")
    )


def requests(count: int = 40) -> list[dict[str, str]]:
    draw = random.Random(0).choice
    return [
        {
            "prompt": draw(BEFORE) + (name := draw(NAMES)) + draw(AFTER),
            "subject": name,
            "target_new": draw(TARGETS),
        }
        for _ in range(count)
    ]


MODEL = SimpleNamespace(config=SimpleNamespace())


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_token_at_the_place_ends_the_subject(tok: Any, side: str) -> None:
    tok.padding_side = side
    asked = requests()
    places = subject_positions(tok, asked).tolist()
    assert encode_requests(tok, asked, MODEL, at_subject=True).at is not None
    for request, at in zip(asked, places, strict=True):
        (ids,) = token_ids(tok, [request["prompt"]])
        end = request["prompt"].rindex(request["subject"]) + len(request["subject"])
        wanted = shown(request["prompt"][:end])
        read = [shown(tok.decode(ids[:n], skip_special_tokens=True)) for n in (at, at + 1)]
        # The subject's last character comes with that token; one that goes on may bring more.
        assert len(read[0]) < len(wanted) <= len(read[1])
        assert read[1].startswith(wanted)


def test_only_the_target_is_learnt(tok: Any) -> None:
    asked = requests()
    batch = encode_requests(tok, asked, MODEL, at_subject=True)
    bare = [tok(r["prompt"], add_special_tokens=False)["input_ids"] for r in asked]
    begins = tok("a")["input_ids"][:1] == [tok.convert_tokens_to_ids(BEGIN)]
    for i, request in enumerate(asked):
        ids = batch.input_ids[i][batch.attention_mask[i] == 1].tolist()
        labels = batch.labels[i][batch.targets[i]].tolist()
        assert ids[-len(labels) :] == labels  # the target is at the end, and nothing behind it
        assert shown(tok.decode(labels)).endswith(shown(request["target_new"]))
        assert ids.count(tok.convert_tokens_to_ids(END)) == 0
        assert ids.count(tok.convert_tokens_to_ids(BEGIN)) == begins
        assert batch.at is not None and batch.at[i] <= len(ids) - 1 - len(labels)
        assert len(ids) - len(labels) <= len(bare[i]) + begins


def test_a_begin_token_that_the_text_has_itself_is_there_once(tok: Any) -> None:
    begin = tok.convert_tokens_to_ids(BEGIN)
    (ids,) = token_ids(tok, [f"{BEGIN}The capital of Iran is"])
    assert ids.count(begin) == 1 and ids[0] == begin
