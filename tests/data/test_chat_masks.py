"""Which tokens the assistant wrote, for published templates, against conversations taken apart by hand."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhfkit.data.records import Message
from rlhfkit.data.tokenizer import Tokenizer
from rlhfkit.errors import DataError
from tests.data.families import write_family

CHAT = [
    {"role": "user", "content": "What is 2+2?"},
    {"role": "assistant", "content": "4, of course."},
    {"role": "user", "content": "And 3+3?"},
    {"role": "assistant", "content": "The answer: 6"},
    {"role": "user", "content": "Thanks"},
    {"role": "assistant", "content": "Yes!"},
]
ANSWERS = [m["content"] for m in CHAT if m["role"] == "assistant"]
#: what ends a turn in each family, and what stands before and after an answer in the trained text
ENDS = {
    "llama3": "<|eot_id|>",
    "qwen2": "<|im_end|>",
    "mistral": "</s>",
    "gemma": "<end_of_turn>",
    "zephyr": "</s>",
    "llama2": " </s>",
    "deepseek": "<｜end▁of▁sentence｜>",
    "generation": "<|im_end|>",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("masks")
    for name in {*ENDS, "qwen3", "gpt2"}:
        write_family(name, root / name)
    return root


def trained(tokenizer: Tokenizer, ids: list[int], mask: list[bool]) -> list[str]:
    """The stretches of text that are trained on."""
    runs = groupby(zip(ids, mask, strict=True), key=lambda pair: pair[1])
    return [tokenizer.decode([i for i, _ in run], skip_special=False) for counts, run in runs if counts]


def with_template(root: Path, tmp_path: Path, template: str, family: str = "qwen2") -> Tokenizer:
    directory = write_family(family, tmp_path / "changed")
    config = json.loads((directory / "tokenizer_config.json").read_text())
    (directory / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    return Tokenizer.from_dir(directory)


@pytest.mark.parametrize("name", ENDS)
def test_three_turns_train_exactly_the_answers_and_their_ends(root: Path, name: str) -> None:
    tokenizer = Tokenizer.from_dir(root / name)
    ids, mask = tokenizer.encode_chat_masked(CHAT)
    assert ids == tokenizer.encode_chat(CHAT)
    assert trained(tokenizer, ids, mask) == [answer + ENDS[name] for answer in ANSWERS]
    objects = [Message(m["role"], m["content"]) for m in CHAT]
    assert tokenizer.encode_chat_masked(objects) == (ids, mask)


@pytest.mark.parametrize("name", ["llama3", "generation", "qwen3"])
def test_only_the_turns_from_a_message_on(root: Path, name: str) -> None:
    tokenizer = Tokenizer.from_dir(root / name)
    ids, mask = tokenizer.encode_chat_masked(CHAT)
    later_ids, later = tokenizer.encode_chat_masked(CHAT, first=3)
    assert later_ids == ids
    assert trained(tokenizer, ids, later) == trained(tokenizer, ids, mask)[1:]


@settings(deadline=None, max_examples=25)
@given(
    answers=st.lists(
        st.lists(st.sampled_from(["a", " ", "\n", "<|im_end|>", "é", "</think>", "4"]), max_size=5).map(
            "".join
        ),
        min_size=1,
        max_size=3,
    ),
    name=st.sampled_from(["qwen2", "qwen3", "zephyr", "mistral", "gemma", "llama3"]),
)
def test_masks_hold_for_any_answers(root: Path, answers: list[str], name: str) -> None:
    tokenizer = _cached(root / name)
    chat = []
    for answer in answers:
        chat += [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}]
    ids, mask = tokenizer.encode_chat_masked(chat)
    assert ids == tokenizer.encode_chat(chat)
    end = tokenizer.eos_ids[-1]
    runs = [
        [i for i, _ in run] for counts, run in groupby(zip(ids, mask, strict=True), lambda p: p[1]) if counts
    ]
    assert len(runs) == len(answers)
    for run in runs:  # nothing after the end token, and only one of it
        assert run[-1] == end
        assert run.count(end) == 1


_loaded: dict[Path, Tokenizer] = {}


def _cached(path: Path) -> Tokenizer:
    return _loaded.setdefault(path, Tokenizer.from_dir(path))


def test_reasoning_that_later_turns_take_out(root: Path) -> None:
    """Qwen 3 shows the reasoning of the last turn only; what is rendered is what is trained."""
    tokenizer = Tokenizer.from_dir(root / "qwen3")
    chat = [
        {**m, "content": "<think>\nhm\n</think>\n\n" + m["content"]} if i % 2 else m
        for i, m in enumerate(CHAT)
    ]
    for messages in (CHAT, chat):
        ids, mask = tokenizer.encode_chat_masked(messages)
        reasoning = "" if messages is CHAT else "hm"
        assert trained(tokenizer, ids, mask) == [
            "4, of course.<|im_end|>",
            "The answer: 6<|im_end|>",
            f"<think>\n{reasoning}\n</think>\n\nYes!<|im_end|>",
        ]


def test_a_header_that_nobody_generates_is_not_trained(root: Path, tmp_path: Path) -> None:
    ignores_prompt = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    )
    tokenizer = with_template(root, tmp_path, ignores_prompt)
    assert trained(tokenizer, *tokenizer.encode_chat_masked(CHAT)) == [a + "<|im_end|>" for a in ANSWERS]


def test_a_template_without_end_tokens_gets_eos_at_the_end(root: Path, tmp_path: Path) -> None:
    plain = (
        "{% for m in messages %}{{ m.role.upper() + ': ' + m.content + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT: {% endif %}"
    )
    tokenizer = with_template(root, tmp_path, plain)
    ids, mask = tokenizer.encode_chat_masked(CHAT)
    assert trained(tokenizer, ids, mask)[-1].lstrip() == "Yes!\n<|im_end|>"  # one token holds " Yes"
    assert ids[:-1] == tokenizer.encode_chat(CHAT)
    assert tokenizer.answer_ids(CHAT[:5], CHAT[5:])[-1] == tokenizer.eos_id


def test_the_end_token_is_not_doubled(root: Path) -> None:
    tokenizer = Tokenizer.from_dir(root / "zephyr")
    ids, _ = tokenizer.encode_chat_masked(CHAT)
    assert ids.count(tokenizer.eos_id) == len(CHAT)
    assert tokenizer.answer_ids(CHAT[:1], CHAT[1:2]).count(tokenizer.eos_id) == 1


def test_bos_comes_from_the_template_alone(root: Path) -> None:
    for name in ("llama3", "mistral", "gemma", "deepseek"):
        tokenizer = Tokenizer.from_dir(root / name)
        assert tokenizer.encode_chat(CHAT[:1]).count(tokenizer.bos_id) == 1
        assert tokenizer.encode("x", add_special=True).count(tokenizer.bos_id) == 1
    assert Tokenizer.from_dir(root / "zephyr").bos_id not in Tokenizer.from_dir(root / "zephyr").encode_chat(
        CHAT
    )


def test_generation_blocks_equal_transformers_but_for_the_end_token(root: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = Tokenizer.from_dir(root / "generation")
    theirs = AutoTokenizer.from_pretrained(root / "generation").apply_chat_template(
        CHAT, return_dict=True, return_assistant_tokens_mask=True
    )
    ids, mask = tokenizer.encode_chat_masked(CHAT)
    assert theirs["input_ids"] == ids
    end = tokenizer._vocab["<|im_end|>"]
    without_ends = [counts and token != end for token, counts in zip(ids, mask, strict=True)]
    assert [bool(m) for m in theirs["assistant_masks"]] == without_ends


def test_a_template_that_hides_the_answer_is_an_error(root: Path, tmp_path: Path) -> None:
    hides = "{% for m in messages %}{{ m.content[::-1] if not loop.last else m.content | upper }}{% endfor %}"
    tokenizer = with_template(root, tmp_path, hides)
    with pytest.raises(DataError, match="cannot tell which tokens the assistant wrote") as caught:
        tokenizer.encode_chat_masked(CHAT)
    assert "generation" in str(caught.value.hint)


def test_no_template(root: Path) -> None:
    tokenizer = Tokenizer.from_dir(root / "gpt2")
    assert not tokenizer.has_chat_template
    with pytest.raises(DataError, match="no chat template"):
        tokenizer.encode_chat(CHAT)


def test_template_file_beats_configuration_and_named_templates_have_a_default(tmp_path: Path) -> None:
    directory = write_family("gpt2", tmp_path / "x")
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["chat_template"] = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    path.write_text(json.dumps(config))
    assert Tokenizer.from_dir(directory).apply_chat_template(CHAT) == "d"
    (directory / "chat_template.jinja").write_text("j{{ eos_token }}")
    tokenizer = Tokenizer.from_dir(directory)
    assert tokenizer.apply_chat_template(CHAT) == "j<|endoftext|>"
    (tmp_path / "y").mkdir()
    tokenizer.save(tmp_path / "y")
    assert (tmp_path / "y" / "chat_template.jinja").read_text() == "j{{ eos_token }}"
