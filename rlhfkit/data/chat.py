"""Chat templates: Jinja, rendered as transformers renders it, and kept on a short leash.

A chat template is a program that comes with somebody else's model. It runs in jinja2's immutable sandbox,
inside a helper process of its own that may not open files and has limits on time, memory and output. The
helper is started at the first rendering, answers requests over pipes and is reused. Only the template that
rlhfkit writes itself, recognised by its exact text, is rendered in this process.

The environment mirrors transformers' `utils/chat_template_utils.py`: trim_blocks, lstrip_blocks, loop
controls, `tojson` without HTML escapes, `raise_exception`, `strftime_now` and `{% generation %}`, whose
spans say what the assistant wrote.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import IO, Any, NamedTuple

from rlhfkit.data.helper import helper_command
from rlhfkit.errors import DataError

#: Limits of one rendering by a template that is not ours.
SECONDS = 4.0
MEMORY = 512 * 2**20
#: A rendering may have this many characters more than its messages.
OUTPUT = 2**20
#: Longest template accepted, in characters.
LONGEST = 2**20

#: The template of tokenizers that rlhfkit trains. Role tokens and the end token are special tokens, so that
#: no spaces or line ends are needed around them.
DEFAULT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "<|assistant|>{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}"
    "{% elif message['role'] == 'user' %}{{ '<|user|>' + message['content'] + '<|end|>' }}"
    "{% elif message['role'] == 'system' %}{{ '<|system|>' + message['content'] + '<|end|>' }}"
    "{% else %}{{ raise_exception('unknown role: ' + message['role']) }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

Chat = Sequence[Mapping[str, object]]


class Call(NamedTuple):
    """One rendering that is asked for."""

    messages: Chat
    add_generation_prompt: bool


class Rendered(NamedTuple):
    """Rendered text and the character spans that stood in `{% generation %}` blocks."""

    text: str
    spans: list[tuple[int, int]]


class ChatTemplate:
    """A chat template with the special tokens it may name (`bos_token` and so on)."""

    def __init__(self, text: str, variables: Mapping[str, str], *, where: str) -> None:
        if len(text) > LONGEST:
            raise DataError(f"chat template of {len(text)} characters (at most {LONGEST})", where=where)
        self.text = text
        self.variables = dict(variables)
        self.where = where
        self._lock = threading.Lock()
        self._guard: _Guard | None = None
        self._ours: _Renderer | None = None

    def render(self, messages: Chat, *, add_generation_prompt: bool = False) -> str:
        """The conversation as one string. Raises DataError when the template refuses or misbehaves."""
        return self.render_many([Call(messages, add_generation_prompt)])[0].text

    def render_many(self, calls: Sequence[Call]) -> list[Rendered]:
        """Several renderings in one exchange with the helper."""
        plain = [[list(call.messages), call.add_generation_prompt] for call in calls]
        with self._lock:
            if self.text == DEFAULT_TEMPLATE:
                self._ours = self._ours or _Renderer(self.text)
                answer = _answer(self._ours, plain, self.variables)
            else:
                if self._guard is None or not self._guard.usable:
                    self._guard = _Guard(self.text, self.where)
                answer = self._guard.ask(plain, self.variables)
        if "error" in answer:
            raise DataError(
                f"chat template: {answer['error']}", where=self.where if answer["fault"] else None
            )
        return [Rendered(text, [(a, b) for a, b in spans]) for text, spans in answer["results"]]


# -- rendering: runs in this process for our own template, in the helper for any other --------------------


class _Renderer:
    """A compiled template and the place where its generation spans are collected."""

    def __init__(self, text: str) -> None:
        from jinja2.exceptions import SecurityError
        from jinja2.ext import Extension, loopcontrols
        from jinja2.nodes import CallBlock, Node
        from jinja2.parser import Parser
        from jinja2.runtime import Macro
        from jinja2.sandbox import ImmutableSandboxedEnvironment
        from jinja2.utils import Namespace

        renderer = self

        class Generation(Extension):
            """`{% generation %}`: note where in the output the block lands."""

            tags = {"generation"}

            def parse(self, parser: Parser) -> Node:
                line = next(parser.stream).lineno
                body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
                return CallBlock(self.call_method("_note"), [], [], body).set_lineno(line)

            def _note(self, caller: Macro) -> str:
                written = caller()
                start = sum(map(len, renderer.blocks))
                renderer.spans.append((start, start + len(written)))
                return str(written)

        class Strict(ImmutableSandboxedEnvironment):
            """Reaching for an unsafe attribute is an error at once, not an empty string."""

            def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
                raise SecurityError(f"access to attribute {attribute!r} is not allowed")

        class PlainNamespace(Namespace):
            """A namespace that takes no underscore names, as in transformers."""

            def __init__(*args: Any, **kwargs: Any) -> None:
                attributes = dict(*args[1:], **kwargs)
                for name in attributes:
                    _refuse_private(name)
                Namespace.__init__(args[0], attributes)

            def __setitem__(self, name: str, value: Any) -> None:
                _refuse_private(name)
                super().__setitem__(name, value)

        environment = Strict(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
        environment.filters["tojson"] = _tojson
        environment.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
            "namespace": PlainNamespace,
            "dict": _TemplateDict(),
        }
        self.blocks: list[str] = []
        self.spans: list[tuple[int, int]] = []
        self._template = environment.from_string(text)

    def render(
        self, messages: Chat, add_generation_prompt: bool, variables: Mapping[str, str], limit: int
    ) -> Rendered:
        self.blocks, self.spans = [], []
        size = 0
        for block in self._template.generate(
            messages=messages,
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **variables,
        ):
            self.blocks.append(block)
            size += len(block)
            if size > limit:
                raise _TooMuchOutput(f"writes more than {limit} characters")
        return Rendered("".join(self.blocks), self.spans)


class _TooMuchOutput(Exception):
    """The template wrote more than it may."""


class _TemplateDict:
    """`dict` for templates, without a type to climb from."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _refuse_private(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        from jinja2.exceptions import SecurityError

        raise SecurityError(f"a namespace cannot hold {name!r}")


def _raise_exception(message: str) -> None:
    from jinja2.exceptions import TemplateError

    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    from datetime import datetime

    return datetime.now().strftime(form)


def _tojson(
    x: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _answer(renderer: _Renderer, calls: list[Any], variables: Mapping[str, str]) -> dict[str, Any]:
    """Render every call: {"results": [[text, spans]...]}, or {"error", "fault"} (the template's or not)."""
    from jinja2.exceptions import SecurityError, TemplateError

    results = []
    for messages, add_generation_prompt in calls:
        _arm()
        limit = OUTPUT + _size(messages)
        try:
            results.append(renderer.render(messages, add_generation_prompt, variables, limit))
        except SecurityError as e:
            return _failure(e, fault=True)
        except TemplateError as e:  # mostly raise_exception: the conversation is not to the template's liking
            return _failure(e, fault=False)
        except Exception as e:
            return _failure(e, fault=True)
    return {"results": results}


def _failure(error: BaseException, *, fault: bool) -> dict[str, Any]:
    if isinstance(error, MemoryError):
        return {"error": f"needs more than {MEMORY >> 20} MiB", "fault": True}
    if isinstance(error, RecursionError):
        return {"error": "nested too deeply", "fault": True}
    text = str(error).split("\n", 1)[0][:300]
    return {"error": text or type(error).__name__, "fault": fault}


def _size(value: object) -> int:
    """Characters in a message and everything inside it."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_size, value.values()))
    if isinstance(value, list):
        return sum(map(_size, value))
    return 8


# -- the helper process -----------------------------------------------------------------------------------


class _Guard:
    """A helper process that renders one template."""

    def __init__(self, text: str, where: str) -> None:
        self.where = where
        self._owner = os.getpid()
        kept = {
            k: v
            for k, v in os.environ.items()
            if k in ("TZ", "LANG", "LD_LIBRARY_PATH") or k.startswith("LC_")
        }
        self._process = subprocess.Popen(
            helper_command("rlhfkit.data.chat"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=kept,
            cwd="/",
            process_group=0,  # Ctrl-C is for us; the helper ends with its pipe
        )
        self.close = weakref.finalize(self, _end, self._process, self._owner)
        answer = self._exchange({"template": text})
        if "error" in answer:
            self.close()
            raise DataError(f"chat template: {answer['error']}", where=where)

    @property
    def usable(self) -> bool:
        """Whether it can be asked: it lives, and belongs to this process, not to one that forked it."""
        return self._owner == os.getpid() and self._process.poll() is None

    def ask(self, calls: list[Any], variables: Mapping[str, str]) -> dict[str, Any]:
        """Render `calls` there; the answer is that of `_answer`."""
        return self._exchange({"calls": calls, "variables": variables})

    def _exchange(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            reply = self._process.stdout.readline()
        except BrokenPipeError:
            reply = b""
        if not reply.endswith(b"\n"):
            self.close()
            raise DataError(f"chat template: stopped after {SECONDS:g} s of rendering", where=self.where)
        answer: dict[str, Any] = json.loads(reply)
        return answer


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    """End a helper, unless it belongs to the process that forked this one."""
    if owner == os.getpid():
        process.kill()
        process.communicate()


def serve() -> None:
    """The helper's main loop: a template, then lists of conversations; JSON lines over the standard pipes."""
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    text = json.loads(requests.readline())["template"]
    _confine()
    _arm()
    try:
        renderer = _Renderer(text)
    except Exception as e:
        _reply(replies, _failure(e, fault=True))
        return
    _reply(replies, {})
    while line := requests.readline():
        request = json.loads(line)
        _reply(replies, _answer(renderer, request["calls"], request["variables"]))


def _reply(out: IO[bytes], answer: dict[str, Any]) -> None:
    out.write(json.dumps(answer).encode() + b"\n")
    out.flush()
    _arm(0)


#: True in the helper, where the alarm clock may end the process.
_confined = False


def _arm(seconds: float = SECONDS) -> None:
    """Have the kernel end this helper after so long; nothing in our own process."""
    if _confined:
        import signal

        signal.setitimer(signal.ITIMER_REAL, seconds)


def _confine() -> None:
    """Give up what a template could misuse if it ever got out of the sandbox."""
    import resource
    import signal
    import time

    # What jinja2 and the C library would otherwise open files for later on.
    _answer(
        _Renderer(DEFAULT_TEMPLATE), [[[{"role": "user", "content": ""}], True], [[{"role": ""}], True]], {}
    )
    _strftime_now("%c")
    time.localtime()
    global _confined
    _confined = True
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for limit, value in (
        (resource.RLIMIT_AS, MEMORY),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 3),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))
