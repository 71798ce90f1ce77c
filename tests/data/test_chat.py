"""Chat templates: rendered as transformers renders them, and harmless whatever they try."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rlhfkit.data.chat import DEFAULT_TEMPLATE, Call, ChatTemplate
from rlhfkit.errors import DataError
from tests.data import families

CHAT = [
    {"role": "user", "content": 'Hi <b>"there"</b> & all\n'},
    {"role": "assistant", "content": " yes é你😀 "},
    {"role": "user", "content": "ok"},
]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}

PUBLISHED = {
    name: getattr(families, name)
    for name in (
        ["CHATML", "LLAMA3", "MISTRAL", "GEMMA", "ZEPHYR", "LLAMA2", "QWEN3", "DEEPSEEK", "GENERATION"]
    )
}
FEATURES = {
    "ours": DEFAULT_TEMPLATE,
    "blocks are trimmed": "  {% if true %}\n  a\n  {% endif %}\n b {#- c -#} \n",
    "loop controls": "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "continue": "{% for m in messages %}{% if m.role == 'user' %}{% continue %}{% endif %}{{ m.content }}{% endfor %}",
    "tojson": "{{ messages | tojson }}|{{ messages[0] | tojson(indent=2) }}|{{ {'b': 1, 'a': 'é'} | tojson }}",
    "tojson options": "{{ {'b': 1, 'a': 'é'} | tojson(ensure_ascii=True, separators=(',', ':'), sort_keys=true) }}",
    "strftime": "{{ strftime_now('%Y-%m') }}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "macros": "{% macro say(x) %}[{{ x | upper }}]{% endmacro %}{{ say(messages[0].role) }}{{ say(eos_token) }}",
    "missing": "{{ nothing }}{{ messages[0].nothing }}{% if tools %}t{% endif %}{% if tools is none %}n{% endif %}",
    "documents": "{{ documents is none }}{{ unk_token is defined }}{{ bos_token }}",
    "dict": "{{ dict(a=1).items() | list }}{{ dict.fromkeys(['x'], 2) }}",
    "slices": "{{ messages[1:][0]['content'].strip() }}{{ messages[-1].content[::-1] }}{{ messages | length }}",
    "spans in loops": "{% for m in messages %}x{% generation %}{{ m.content }}{% endgeneration %}y{% endfor %}",
    "spans in branches": "{% if true %}{%- generation -%} {{ messages[0].content }}!{%- endgeneration -%}{% endif %} z",
}


@pytest.mark.parametrize("name", [*PUBLISHED, *FEATURES])
def test_rendering_and_spans_equal_those_of_transformers(name: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    text = {**PUBLISHED, **FEATURES}[name]
    template = ChatTemplate(text, TOKENS, where="x")
    for messages, prompt in ((CHAT, True), (CHAT[:2], False)):
        want, spans = render_jinja_template(
            conversations=[messages],
            chat_template=text,
            add_generation_prompt=prompt,
            return_assistant_tokens_mask=True,
            **TOKENS,
        )
        got = template.render_many([Call(messages, prompt)])[0]
        assert (got.text, got.spans) == (want[0], spans[0])


def test_a_template_refuses_a_conversation() -> None:
    template = ChatTemplate(families.MISTRAL, TOKENS, where="x")
    with pytest.raises(DataError, match="roles must alternate") as caught:
        template.render(CHAT[1:])
    assert caught.value.where is None  # the record's fault: the caller knows where that is
    assert template.render(CHAT[:1]).startswith("<s>[INST]")
    ours = ChatTemplate(DEFAULT_TEMPLATE, {}, where="x")
    with pytest.raises(DataError, match="unknown role: tool"):
        ours.render([{"role": "tool", "content": "x"}])


CANARY = "/tmp/rlhfkit-template-canary"
PAYLOADS = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.popen('touch CANARY').read() }}",
    "{{ self.__init__.__globals__.__builtins__.open('CANARY', 'w') }}",
    "{{ lipsum.__globals__['os'].system('touch CANARY') }}",
    "{{ messages | map(attribute='__class__') | list }}",
    "{{ '%s'.format.__self__ | attr('__class__') }}",
    "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "{% set ns = namespace(__class__=1) %}{{ ns }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os.system('touch CANARY') }}",
    "{{ messages.append(messages) }}",
    "{{ 'a' * 200000000 }}",
    "{{ 'x' * 10 ** 10 }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ messages[0].content | center(2000000) }}",
    "{% for i in range(10 ** 9) %}x{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{{ (9 ** 9) ** (9 ** 8) }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% for i in range(99999) %}{{ messages[0].content }}{% endfor %}",
    "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "{{ lipsum(n=100000) }}",
    "{% if %}",
    "{{ messages[0].content.__doc__ }}",
]


@pytest.fixture(scope="module")
def outcomes() -> dict[str, tuple[DataError | str, float]]:
    """What became of each payload and how many seconds it took; all at once, as some take their full time."""
    Path(CANARY).unlink(missing_ok=True)

    def outcome(payload: str) -> tuple[DataError | str, float]:
        start = time.monotonic()
        try:
            text = ChatTemplate(payload.replace("CANARY", CANARY), TOKENS, where="dir").render(CHAT)
        except DataError as e:
            return e, time.monotonic() - start
        return text, time.monotonic() - start

    with ThreadPoolExecutor(6) as pool:
        return dict(zip(PAYLOADS, pool.map(outcome, PAYLOADS), strict=True))


@pytest.mark.parametrize("payload", PAYLOADS)
def test_hostile_templates_are_refused_and_run_nothing(
    payload: str, outcomes: dict[str, tuple[DataError | str, float]]
) -> None:
    error, seconds = outcomes[payload]
    assert isinstance(error, DataError)
    assert error.where == "dir"
    assert "\n" not in str(error)
    assert seconds < 30  # under 6 alone on a machine that is not busy
    assert not Path(CANARY).exists()


def test_too_long_a_template() -> None:
    with pytest.raises(DataError, match="characters"):
        ChatTemplate("x" * (2**20 + 1), {}, where="x")


def test_a_long_conversation_is_no_reason_to_refuse() -> None:
    chat = [{"role": "user", "content": "x" * 3_000_000}]
    assert len(ChatTemplate(families.CHATML, {}, where="x").render(chat)) > 3_000_000


def test_the_helper_is_reused_survives_refusals_and_comes_back_when_it_dies() -> None:
    template = ChatTemplate(families.MISTRAL, TOKENS, where="x")
    want = template.render(CHAT)
    assert template._guard is not None
    pid = template._guard._process.pid
    with pytest.raises(DataError):
        template.render(CHAT[1:])
    assert template.render(CHAT) == want
    assert template._guard._process.pid == pid
    os.kill(pid, signal.SIGKILL)
    template._guard._process.wait()
    assert template.render(CHAT) == want
    assert template._guard._process.pid != pid


def test_the_helper_has_no_way_out() -> None:
    """What a template could reach if it ever left the sandbox: no files, no secrets."""
    script = """
import os, resource, sys
from rlhfkit.data import chat
chat._confine()
try:
    open("/etc/passwd")
except OSError as e:
    print(e.errno)
print(resource.getrlimit(resource.RLIMIT_AS)[0] == chat.MEMORY)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["24", "True"]
    os.environ["RLHFKIT_API_KEY"] = "secret"
    try:
        template = ChatTemplate(families.CHATML, {}, where="x")
        template.render(CHAT)
        assert template._guard is not None
        environment = Path(f"/proc/{template._guard._process.pid}/environ").read_bytes()
    finally:
        del os.environ["RLHFKIT_API_KEY"]
    assert b"secret" not in environment


def test_helpers_end_with_the_process_that_started_them() -> None:
    script = (
        "from rlhfkit.data.chat import ChatTemplate; t = ChatTemplate('x', {}, where='y'); t.render([]);"
        "print(t._guard._process.pid, flush=True); import os; os._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    pid = int(done.stdout)
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2]:
            return
        time.sleep(0.05)
    raise AssertionError("the helper is still there")


def test_our_own_template_needs_no_helper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    assert ChatTemplate(DEFAULT_TEMPLATE, {}, where="x").render(CHAT[:1]).startswith("<|user|>")
