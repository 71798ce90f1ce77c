"""Which characters of a rendered conversation the assistant wrote.

A template with `{% generation %}` blocks says it itself. Without them, an assistant turn is what the
rendering up to and including it adds to the rendering before it with the generation prompt: exactly what a
model has to produce there. Line ends after the end token are not part of it, as no model is asked for them.

Some templates write earlier turns differently once later ones follow (reasoning is taken out, say), or
ignore the generation prompt. Then the turn's content is found by marking it with two characters that no
message contains, provided that the marks change nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

from rlhfkit.data.chat import Call, Chat, ChatTemplate
from rlhfkit.data.marks import Marks
from rlhfkit.errors import DataError

Span = tuple[int, int]

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


def _say(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


class _Context(NamedTuple):
    """A conversation rendered up to an assistant turn, in three ways; None where the template refused."""

    before: str | None
    prompted: str | None  # with the generation prompt
    after: str | None  # the turn included


class _Content(NamedTuple):
    """Where an assistant's content stands; the start is unknown if the template left it out."""

    start: int | None
    end: int


class Turns:
    """Where turns start and end under a chat template; `control` are the tokens that may end one."""

    def __init__(self, template: ChatTemplate, control: Sequence[str]) -> None:
        self.template = template
        longest_first = sorted(control, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    @cached_property
    def end_token(self) -> str | None:
        """The special token that the template writes after an assistant's turn, if any."""
        try:
            text = self.template.render([_say("user", "Hello"), _say("assistant", "Yes")])
        except DataError:
            return None
        found = self._control.search(text, text.rfind("Yes") + 3)
        return found[0] if found else None

    def assistant_spans(self, messages: Chat, marks: Marks, first: int) -> tuple[str, list[Span]]:
        """(rendered conversation, character spans of the assistant turns from message `first` on).

        `messages` are marked with `marks`. Raises DataError when a turn cannot be found.
        """
        turns = [i for i, message in enumerate(messages) if message.get("role") == "assistant"]
        full = self.template.render_many([Call(messages, False)])[0]
        if _GENERATION.search(self.template.text):
            spans = full.spans
            if first and len(spans) != len(turns):
                raise self._lost("its generation blocks do not match the assistant turns")
            spans = [span for i, span in zip(turns, spans, strict=True) if i >= first] if first else spans
            return full.text, [(start, self._end_token_after(full.text, end)) for start, end in spans]
        wanted = [n for n, i in enumerate(turns) if i >= first]
        contexts = [self._context(messages, turns[n]) for n in wanted]
        contents = None
        spans = []
        for n, context in zip(wanted, contexts, strict=True):
            if contents is None and _needs_contents(context, full.text):
                contents = self._contents(messages, turns, full.text, marks)
            spans.append(self._span(full.text, context, contents[n] if contents else None, marks))
        return full.text, spans

    def answer(self, prompt: Chat, answer: Chat, marks: Marks) -> tuple[str, bool]:
        """(what an answer adds after the generation prompt, whether that ends in the end token)."""
        prompted, full = (
            r.text for r in self.template.render_many([Call(prompt, True), Call([*prompt, *answer], False)])
        )
        if not full.startswith(prompted):
            text, spans = self.assistant_spans([*prompt, *answer], marks, len(prompt))
            if not spans:
                raise self._lost("it writes the prompt differently once an answer follows")
            prompted, full = text[: spans[0][0]], text[: spans[-1][1]]
        start = len(prompted)
        end = _cut(full, start, len(full), marks)
        return full[start:end], self._ends(full[start:end], marks)

    def _ends(self, text: str, marks: Marks) -> bool:
        return bool(text) and _cut(text + " ", 0, len(text) + 1, marks) == len(text)

    def _end_token_after(self, text: str, end: int) -> int:
        """`end`, moved behind the end token if that follows at once."""
        token = self.end_token
        return end + len(token) if token and text.startswith(token, end) else end

    # -- without {% generation %} --------------------------------------------------------------------------

    def _context(self, messages: Chat, turn: int) -> _Context:
        def attempt(upto: int, prompt: bool) -> str | None:
            if upto == 0:
                return None
            try:
                return self.template.render(messages[:upto], add_generation_prompt=prompt)
            except DataError:
                return None

        return _Context(attempt(turn, False), attempt(turn, True), attempt(turn + 1, False))

    def _span(self, full: str, context: _Context, content: _Content | None, marks: Marks) -> Span:
        start = end = None
        if context.prompted is not None and full.startswith(context.prompted):
            start = len(context.prompted)
            if content is not None and content.start is not None:
                ignored = context.prompted == context.before
                if start > content.start or (ignored and full[start : content.start].strip()):
                    start = content.start  # what stands before it is a header that nobody generates
        elif content is not None:
            start = content.start
        if start is not None and context.after is not None and full.startswith(context.after):
            end = _cut(full, start, len(context.after), marks)
        elif content is not None:
            spaces = len(full) - len(full[content.end :].lstrip())
            end = self._end_token_after(full, spaces)
            end = end if end > spaces else content.end
        if start is None or end is None:
            raise self._lost("it writes earlier turns differently once later ones follow")
        return start, end

    def _contents(
        self, messages: Chat, turns: Sequence[int], full: str, marks: Marks
    ) -> list[_Content] | None:
        """Where the assistant's contents stand in `full`; None if marking them changes anything else."""
        for outside in (True, False):  # marks around the content's outer spaces, or (templates trim) inside
            marked = [
                {**m, "content": _bracket(m["content"], marks, outside)} if i in turns else m
                for i, m in enumerate(messages)
            ]
            try:
                text = self.template.render(marked)
            except DataError:
                continue
            if re.sub(f"[{marks.begin}{marks.finish}]", "", text) != full:
                continue
            found = _marked_contents(text, marks)
            if len(found) == len(turns):
                return found
        return None

    def _lost(self, why: str) -> DataError:
        return DataError(
            f"cannot tell which tokens the assistant wrote: {why}",
            where=self.template.where,
            hint="put {% generation %} ... {% endgeneration %} around it in the chat template",
        )


def turn_markers(template: ChatTemplate, spelt: Sequence[str]) -> list[str]:
    """Those of the tokens `spelt` in a template that it writes around turns, whatever is said in them."""
    try:
        text = template.render([_say("user", "Hello"), _say("assistant", "Yes"), _say("user", "Thanks")])
    except DataError:
        return []
    return [token for token in spelt if token in text]


def _needs_contents(context: _Context, full: str) -> bool:
    before, prompted, after = context
    if prompted is None or after is None or prompted == before:
        return True
    return not (full.startswith(prompted) and full.startswith(after))


def _marked_contents(text: str, marks: Marks) -> list[_Content]:
    """Contents between marks, as places in the text without the marks; a template may drop a beginning."""
    contents = []
    start = None
    for removed, mark in enumerate(re.finditer(f"[{marks.begin}{marks.finish}]", text)):
        at = mark.start() - removed
        if mark[0] == marks.begin:
            start = at
        else:
            contents.append(_Content(start, at))
            start = None
    return contents


def _bracket(content: Any, marks: Marks, outside: bool) -> Any:
    if not isinstance(content, str):
        return content
    core = content if outside else content.strip()
    at = content.find(core) if core else len(content)
    return f"{content[:at]}{marks.begin}{core}{marks.finish}{content[at + len(core) :]}"


def _cut(text: str, start: int, end: int, marks: Marks) -> int:
    """`end`, moved back to the last special token if only spaces follow that."""
    last = None
    for found in marks.genuine.finditer(text, start, end):
        if found["token"] is not None:
            last = found.end()
    return last if last is not None and not text[last:end].strip() else end
