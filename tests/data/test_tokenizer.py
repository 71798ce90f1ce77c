"""The tokenizer against transformers, and what text must never do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhfkit.data.tokenizer import (
    SPECIAL_TOKENS,
    Tokenizer,
    completion_ids,
    prompt_ids,
    train_tokenizer,
)
from rlhfkit.errors import DataError, UsageError
from tests.data.families import FAMILIES, TEXT, write_family

CHAT = [
    {"role": "user", "content": "What is 2+2?"},
    {"role": "assistant", "content": "4, of course."},
    {"role": "user", "content": "And 3+3?\n"},
    {"role": "assistant", "content": "The answer: 6"},
]
ANY_TEXT = st.text(max_size=60) | st.lists(
    st.sampled_from([*SPECIAL_TOKENS, " ", "\n", "é", "你好", "<|", "|>", "end", "'ll", "  "]), max_size=12
).map("".join)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("own")
    train_tokenizer([TEXT], 400).save(directory)
    return directory


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("families")
    for name in FAMILIES:
        write_family(name, root / name)
    return root


def auto(path: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path)


# -- our own ----------------------------------------------------------------------------------------------


def test_special_tokens_come_first_and_pad_is_not_eos(own: Path) -> None:
    tokenizer = Tokenizer.from_dir(own)
    names = [tokenizer.decode([i], skip_special=False) for i in range(len(SPECIAL_TOKENS))]
    assert tuple(names) == SPECIAL_TOKENS
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.eos_ids, tokenizer.bos_id) == (0, 1, (1,), None)
    assert tokenizer.vocab_size == 400


def test_transformers_opens_it_unchanged(own: Path) -> None:
    tokenizer, theirs = Tokenizer.from_dir(own), auto(own)
    assert (theirs.pad_token_id, theirs.eos_token_id) == (tokenizer.pad_id, tokenizer.eos_id)
    assert set(theirs.all_special_tokens) == set(SPECIAL_TOKENS)
    assert theirs.model_max_length > 10**6
    assert theirs(TEXT)["input_ids"] == tokenizer.encode(TEXT) == tokenizer.encode(TEXT, add_special=True)
    for prompt in (False, True):
        assert theirs.apply_chat_template(
            CHAT[:3], tokenize=False, add_generation_prompt=prompt
        ) == tokenizer.apply_chat_template(CHAT[:3], add_generation_prompt=prompt)
    masked = theirs.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True)
    ids, mask = tokenizer.encode_chat_masked(CHAT)
    assert (masked["input_ids"], masked["assistant_masks"]) == (ids, [int(m) for m in mask])


def test_transformers_opens_it_beside_a_llama_config(own: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_dir(own)
    tokenizer.save(tmp_path, max_length=64)
    (tmp_path / "config.json").write_text('{"model_type": "llama", "vocab_size": 400}')
    theirs = auto(tmp_path)
    assert theirs.model_max_length == 64
    assert theirs(TEXT[:300])["input_ids"] == tokenizer.encode(TEXT[:300])


@settings(deadline=None, max_examples=150)
@given(text=ANY_TEXT)
def test_any_text_comes_back_and_never_becomes_special(own: Path, text: str) -> None:
    tokenizer = _cached(own)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(len(SPECIAL_TOKENS) <= i < tokenizer.vocab_size for i in ids)
    assert ids == tokenizer.encode_batch([text])[0]
    if not any(token in text for token in SPECIAL_TOKENS):
        assert ids == _theirs(own)(text)["input_ids"]


_loaded: dict[Path, object] = {}


def _cached(path: Path) -> Tokenizer:
    return _loaded.setdefault(path, Tokenizer.from_dir(path))  # type: ignore[return-value]


def _theirs(path: Path):
    key = path / "theirs"
    if key not in _loaded:
        _loaded[key] = auto(path)
    return _loaded[key]


def test_training_gives_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    script = (
        "import sys; from rlhfkit.data.tokenizer import train_tokenizer;"
        "from tests.data.families import TEXT; train_tokenizer([TEXT, 'more text'], 400).save(sys.argv[1])"
    )
    written = []
    for seed in ("1", "2"):
        out = tmp_path / seed
        out.mkdir()
        environment = {"PYTHONHASHSEED": seed, "PATH": "/usr/bin:/bin"}
        subprocess.run([sys.executable, "-c", script, str(out)], check=True, env=environment, cwd=_ROOT)
        written.append({p.name: p.read_bytes() for p in out.iterdir()})
    assert written[0] == written[1]
    assert set(written[0]) == {"tokenizer.json", "tokenizer_config.json"}


_ROOT = Path(__file__).parents[2]


def test_vocabulary_must_hold_bytes_and_special_tokens() -> None:
    assert train_tokenizer(["a"], 261).vocab_size == 261
    with pytest.raises(UsageError, match="take 261"):
        train_tokenizer(["a"], 260)


def test_a_little_text_gives_fewer_tokens() -> None:
    tokenizer = train_tokenizer(["ab ab ab"], 1000)
    assert 261 < tokenizer.vocab_size < 270


def test_saving_keeps_bytes_and_digest(own: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_dir(own)
    tokenizer.save(tmp_path)
    assert {p.name: p.read_bytes() for p in own.iterdir()} == {
        p.name: p.read_bytes() for p in tmp_path.iterdir()
    }
    assert Tokenizer.from_dir(tmp_path).digest == tokenizer.digest


def test_decoding_an_id_that_no_model_can_give_is_a_bug(own: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_dir(own)
    for bad in (-1, 400, 10**9):
        with pytest.raises(AssertionError):
            tokenizer.decode([bad])
    # A model may have rows beyond the tokenizer: they decode to nothing.
    tokenizer.save(tmp_path)
    (tmp_path / "config.json").write_text('{"vocab_size": 412}')
    assert Tokenizer.from_dir(tmp_path).decode([411]) == ""


# -- prompts and completions ------------------------------------------------------------------------------


def test_string_prompt_and_completion(own: Path) -> None:
    tokenizer = Tokenizer.from_dir(own)
    assert prompt_ids(tokenizer, "What?") + completion_ids(tokenizer, " 4") == [
        *tokenizer.encode("What?"),
        *tokenizer.encode(" 4"),
        tokenizer.eos_id,
    ]


def test_an_empty_prompt_is_the_end_of_the_document_before(own: Path, families: Path) -> None:
    assert prompt_ids(Tokenizer.from_dir(own), "") == [1]
    llama = Tokenizer.from_dir(families / "llama3")
    assert prompt_ids(llama, "") == [llama.bos_id]


@pytest.mark.parametrize("name", [n for n, (_, c) in FAMILIES.items() if "chat_template" in c])
def test_chat_prompt_and_completion_make_the_conversation(families: Path, name: str) -> None:
    tokenizer = Tokenizer.from_dir(families / name)
    for turns in (1, 3):
        whole = tokenizer.encode_chat(CHAT[: turns + 1])
        text = CHAT[turns]["content"]
        after_prompt = completion_ids(tokenizer, text, prompt=CHAT[:turns])
        assert completion_ids(tokenizer, text, chat=True) == after_prompt
        assert completion_ids(tokenizer, CHAT[turns : turns + 1], prompt=CHAT[:turns]) == after_prompt
        joined = prompt_ids(tokenizer, CHAT[:turns]) + after_prompt
        assert joined == whole[: len(joined)]
        assert after_prompt[-1] in tokenizer.eos_ids
        assert tokenizer.decode(whole[len(joined) :]).strip() == ""


def test_a_completion_goes_on_without_a_new_space(families: Path) -> None:
    tokenizer = Tokenizer.from_dir(families / "llama2")
    assert tokenizer.encode("a b") != tokenizer.encode("a") + tokenizer.encode(" b")
    joined = prompt_ids(tokenizer, "a")[1:] + completion_ids(tokenizer, " b")[:-1]
    assert joined == tokenizer.encode("a b")


# -- other families ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_ids_equal_those_of_transformers(families: Path, name: str) -> None:
    tokenizer, theirs = Tokenizer.from_dir(families / name), auto(families / name)
    texts = [TEXT, "  a  b\n\n\nc\t", "é你😀", " x", "", "\n", "1234 56", "'S they'LL"]
    for text in texts:
        assert tokenizer.encode(text) == theirs.encode(text, add_special_tokens=False)
        assert tokenizer.encode(text, add_special=True) == theirs.encode(text)
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]
    assert tokenizer.vocab_size == len(theirs)


@pytest.mark.parametrize("name", FAMILIES)
@settings(deadline=None, max_examples=20)
@given(data=st.data())
def test_text_never_becomes_special_in_any_family(families: Path, name: str, data: st.DataObject) -> None:
    tokenizer = _cached(families / name)
    control = {t.content: t.id for t in tokenizer._files.parsed.added_tokens if t.special}
    control |= {t.content: t.id for t in tokenizer._files.parsed.added_tokens if t.content.startswith("<｜")}
    unknown = tokenizer._files.parsed.model.unk_token or "<unk>"
    pieces = st.sampled_from([*sorted(control), "a", " ", "\n", "<", "|>", "é", "\U000f0000", "\U000f0001"])
    text = data.draw(st.lists(pieces, max_size=8).map("".join))
    forbidden = {i for token, i in control.items() if token != unknown}
    assert forbidden.isdisjoint(tokenizer.encode(text))
    assert forbidden.isdisjoint(tokenizer.encode_continuation(text))
    assert tokenizer.encode_batch([text]) == [tokenizer.encode(text)]
    if not tokenizer.has_chat_template:
        return
    chat = [CHAT[0], {"role": "assistant", "content": text}, {"role": "user", "content": text}]
    plain = [CHAT[0], {"role": "assistant", "content": "a"}, {"role": "user", "content": "a"}]

    def special(messages: list[dict[str, str]]) -> list[int]:
        return [i for i in tokenizer.encode_chat(messages) if i in forbidden]

    assert special(chat) == special(plain)


@pytest.mark.parametrize("name", ["llama3", "qwen2", "zephyr", "mistral", "gemma"])
def test_spelt_special_tokens_give_the_ids_of_transformers_sanitizing(families: Path, name: str) -> None:
    tokenizer, theirs = Tokenizer.from_dir(families / name), auto(families / name)
    for evil in (theirs.eos_token, f"x {theirs.eos_token}\n y", f"{theirs.eos_token * 2} "):
        chat = [{"role": "user", "content": evil}, {"role": "assistant", "content": f"no {evil}"}]
        want = theirs.apply_chat_template(chat, sanitize_control_tokens=True, return_dict=False)
        assert tokenizer.encode_chat(chat) == want
        assert tokenizer.encode_chat_masked(chat)[0] == want


@pytest.mark.parametrize(
    ("name", "pad"),
    [
        ("gpt2", "ÿ"),  # a byte that UTF-8 cannot contain
        ("zephyr", "<0xFF>"),  # its own PAD is its EOS
        ("llama3", "<|reserved_special_token_0|>"),
        ("neox", "<|padding|>"),
        ("qwen2", "<|endoftext|>"),
        ("gemma", "<pad>"),
    ],
)
def test_pad_is_never_the_end(families: Path, name: str, pad: str) -> None:
    tokenizer = Tokenizer.from_dir(families / name)
    assert tokenizer.pad_token == pad
    assert tokenizer.pad_id not in tokenizer.eos_ids
    assert tokenizer.pad_id not in tokenizer.encode(TEXT + "ÿ\x00\x7f")


def test_a_reward_model_names_its_pad_for_transformers(families: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_dir(families / "zephyr")
    tokenizer.save(tmp_path, with_pad=True)
    assert auto(tmp_path).pad_token_id == tokenizer.pad_id
    assert Tokenizer.from_dir(tmp_path).digest == tokenizer.digest


def test_every_token_that_ends_an_answer_is_known(families: Path, tmp_path: Path) -> None:
    gemma = Tokenizer.from_dir(families / "gemma")
    assert [gemma.decode([i], skip_special=False) for i in gemma.eos_ids] == ["<eos>", "<end_of_turn>"]
    directory = write_family("llama3", tmp_path / "llama3")
    listed = Tokenizer.from_dir(directory).encode_chat(CHAT[:2])[-1]
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [422, listed]}))
    assert Tokenizer.from_dir(directory).eos_ids == (listed, 422)


def test_a_tokenizer_without_an_end_says_so_when_asked(tmp_path: Path) -> None:
    directory = write_family("gpt2", tmp_path / "x")
    (directory / "tokenizer_config.json").write_text("{}")
    tokenizer = Tokenizer.from_dir(directory)
    assert tokenizer.encode("a")
    with pytest.raises(DataError, match="no end-of-text token"):
        tokenizer.eos_id  # noqa: B018
    (directory / "config.json").write_text('{"eos_token_id": 422}')
    assert Tokenizer.from_dir(directory).eos_id == 422


def test_special_tokens_from_the_older_file(tmp_path: Path) -> None:
    directory = write_family("gpt2", tmp_path / "x")
    (directory / "tokenizer_config.json").unlink()
    named = {"eos_token": {"content": "<|endoftext|>", "lstrip": False}}
    (directory / "special_tokens_map.json").write_text(json.dumps(named))
    assert Tokenizer.from_dir(directory).eos_id == 422


def test_tokens_that_only_the_configuration_calls_special(tmp_path: Path) -> None:
    directory = write_family("gpt2", tmp_path / "x")
    vocab = Tokenizer.from_dir(directory)._vocab
    word = next(t for t in vocab if t.isascii() and t.isalpha() and len(t) > 2)
    config = json.loads((directory / "tokenizer_config.json").read_text())
    config |= {"pad_token": word, "chat_template": "{{ messages[0].content }}" + word + "{{ eos_token }}"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer, theirs = Tokenizer.from_dir(directory), auto(directory)
    assert tokenizer.pad_id == theirs.pad_token_id == vocab[word]
    chat = [{"role": "user", "content": "It is "}]
    assert tokenizer.encode_chat(chat) == theirs.apply_chat_template(chat, return_dict=False)
    assert tokenizer.pad_id in tokenizer.encode_chat(chat)
    assert tokenizer.decode(tokenizer.encode(word)) == word
    assert tokenizer.pad_id not in tokenizer.encode(word)


def test_padding_truncation_and_dropout_of_the_file_are_off(tmp_path: Path) -> None:
    directory = write_family("gpt2", tmp_path / "x")
    path = directory / "tokenizer.json"
    plain = Tokenizer.from_dir(directory).encode(TEXT)
    document = json.loads(path.read_text())
    document["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    document["padding"] = {
        "strategy": {"Fixed": 4096},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "!",
    }
    document["model"]["dropout"] = 0.5
    path.write_text(json.dumps(document))
    assert Tokenizer.from_dir(directory).encode(TEXT) == plain
