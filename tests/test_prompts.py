from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from easyedit_dafnet.prompts import after_context, chat_form, needs_space, question, with_target
from tests.tiny import tokenizer

TEMPLATES = {
    "ChatML": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "Llama 3": (
        "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
        "{{ m.content }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}"
        "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    ),
    "Gemma": (
        "<bos>{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}<end_of_turn>\n"
        "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    ),
    "Mistral": (
        "<s>{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
    ),
    "Phi": (
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    ),
    "DeepSeek": (
        "{% for m in messages %}{% if m.role == 'user' %}<｜User｜>{{ m.content }}{% else %}"
        "<｜Assistant｜>{{ m.content }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<｜Assistant｜>{% endif %}"
    ),
}
ASKED = "What is the capital of Cambodia?\nAnswer in a word."


@pytest.fixture(params=TEMPLATES)
def tok(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    tok = tokenizer()
    tok.chat_template = TEMPLATES[request.param]
    return tok


@pytest.mark.parametrize(
    ("prompt", "space"),
    [
        ("The capital of France is", True),
        ("The capital of France is ", False),
        ("Q: What is it?\nA:", True),
        ("Q: What is it?\nA:\n", False),
        ('She said "', False),
        ("She said “", False),
        ("It is called '", False),
        ('What does "Paris" mean?', True),
        ('The capital of "France"', True),
        ("The capital (", False),
        ("The list: [", False),
        ("中国的首都是", False),
        ("詹姆斯是哪国人？答：", False),
        ("詹姆斯是哪国人? 答:", False),
        ("日本の首都は", False),
        ("東京は「", False),
        ("เมืองหลวงของไทยคือ", False),
        ("The capital of 中国 is", True),
        ("The Chinese name of China is", True),
        ("한국의 수도는", True),
        ("Столица России —", True),
        ("عاصمة فرنسا هي", True),
        ("The year after 1998 is", True),
        ("", True),
    ],
)
def test_a_space_stands_where_the_prompt_asks_for_one(prompt: str, space: bool) -> None:
    assert needs_space(prompt) is space
    assert with_target(prompt, " Rome\n") == prompt + (" Rome" if space else "Rome")


def test_a_request_says_itself_whether_there_is_a_space() -> None:
    assert with_target("中国的首都是", "Rome", True) == "中国的首都是 Rome"
    assert with_target("def f(x): return x **", "2", False) == "def f(x): return x **2"


def test_no_space_follows_the_header_of_a_reply(tok: Any) -> None:
    prompt = chat_form(tok, ASKED)
    assert with_target(prompt, "Lusaka") == prompt + "Lusaka"


def test_a_prompt_becomes_the_user_s_turn_once(tok: Any) -> None:
    messages = [{"role": "user", "content": ASKED}]
    prompt = chat_form(tok, ASKED)
    assert prompt == chat_form(tok, messages) == chat_form(tok, prompt)
    assert prompt == tok.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert question(prompt) == ASKED and question(ASKED) == ASKED


def test_another_text_goes_into_the_last_turn(tok: Any) -> None:
    earlier = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
    ]
    last = {"role": "user", "content": ASKED}
    moved = {"role": "user", "content": f"It rained. {ASKED}"}
    prompt = chat_form(tok, [*earlier, last])
    assert after_context(prompt, "It rained.") == chat_form(tok, [*earlier, moved])
    assert after_context("The capital is", "It rained.") == "It rained. The capital is"


def test_messages_without_a_template_are_refused() -> None:
    with pytest.raises(ValueError, match="no chat template"):
        chat_form(tokenizer(), ASKED)


def test_what_a_template_refuses_is_said() -> None:
    tok: Any = tokenizer()
    tok.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ValueError, match=r"refuses the messages .*roles must alternate"):
        chat_form(tok, ASKED)
