"""Lets the PyPI release of EasyEdit read the tokenizers of Llama models of every kind.

For each model with "llama" in its name the release calls the slow `LlamaTokenizer`, which reads
SentencePiece models only: with byte-level BPE (Llama 3, SmolLM2) it fails, or splits words wrongly.
"""

from __future__ import annotations

import importlib
from typing import Any

from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast
from transformers.utils import cached_file, is_sentencepiece_available


class _LlamaTokenizerType(type):
    def __instancecheck__(cls, tokenizer: object) -> bool:
        # The release asks this to decide on padding at the left, which fast tokenizers need too.
        return isinstance(tokenizer, (LlamaTokenizer, PreTrainedTokenizerFast))


class AnyLlamaTokenizer(metaclass=_LlamaTokenizerType):
    """Takes the place of `LlamaTokenizer` in the release's editor."""

    @staticmethod
    def from_pretrained(model_name: str, **kwargs: Any) -> Any:
        """Return `LlamaTokenizer` for a readable SentencePiece model, else the right one."""
        sentencepiece_model = cached_file(
            model_name,
            "tokenizer.model",
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        readable = sentencepiece_model is not None and is_sentencepiece_available()
        kind = LlamaTokenizer if readable else AutoTokenizer
        return kind.from_pretrained(model_name, **kwargs)


def install() -> None:
    """Let the release's editor use AnyLlamaTokenizer."""
    _editor_module().LlamaTokenizer = AnyLlamaTokenizer


def uninstall() -> None:
    """Let the release's editor use `LlamaTokenizer` again."""
    _editor_module().LlamaTokenizer = LlamaTokenizer


def _editor_module() -> Any:
    # Not `import easyeditor.editors.editor as ...`: the release's star imports shadow the name.
    return importlib.import_module("easyeditor.editors.editor")
