"""Who answered what: the answers of several models to the same prompts, matched for comparison."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from rlhfkit.data.records import Sample
from rlhfkit.data.shapes import Completion, Turns
from rlhfkit.errors import DataError

#: A comparison: model a, its completion's number, model b, its completion's number.
Contest = tuple[str, int, str, int]


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt and every model's answers to it."""

    first: Sample  # the record that named it first
    shared: dict[str, object]  # fields on which the records of all models agree, such as a category
    answers: dict[str, list[Completion]] = field(default_factory=dict)

    @property
    def prompt(self) -> Turns:
        """The prompt itself."""
        return self.first.prompt


def prompt_key(prompt: Turns) -> Hashable:
    """Equal for equal prompts."""
    return prompt if isinstance(prompt, str) else tuple((m.role, m.content) for m in prompt)


def match(answers: Iterable[tuple[str, Sample]]) -> tuple[list[str], list[Question]]:
    """Model names in order of first appearance, and the questions they answered.

    Records are matched by `id` when every one has it, else by prompt. Several records of one model for one
    question are several answers. Raises DataError for an id that stands for two prompts, and for one model
    that answers a question in two files.
    """
    held = list(answers)
    by_id = all(sample.id is not None for _, sample in held)
    questions: dict[Hashable, Question] = {}
    sources: dict[tuple[str, Hashable], str] = {}
    for model, sample in held:
        key = sample.id if by_id else prompt_key(sample.prompt)
        question = questions.setdefault(key, Question(sample, dict(sample.row.values)))
        if by_id and question.prompt != sample.prompt:
            raise DataError(
                f"id {sample.id!r} has another prompt at {question.first.where}",
                where=sample.where,
                hint="ids must agree between the files; without ids records are matched by prompt",
            )
        source = sources.setdefault((model, key), sample.row.source)
        if source != sample.row.source:
            raise DataError(
                f"{model} answers this prompt in {source} already",
                where=sample.where,
                hint="two models of one name? --name NAME, once a file, tells them apart",
            )
        for name in [n for n, v in question.shared.items() if sample.row.values.get(n) != v]:
            del question.shared[name]
        question.answers.setdefault(model, []).extend(sample.completions)
    return list(dict.fromkeys(model for model, _ in held)), list(questions.values())


def contests(question: Question, pairs: Iterable[tuple[str, str]]) -> Iterator[Contest]:
    """The comparisons of these pairs of models on one question.

    The k-th answer of one model meets the k-th of the other; who has fewer uses them again in turn.
    """
    for a, b in pairs:
        if a in question.answers and b in question.answers:
            many, other = len(question.answers[a]), len(question.answers[b])
            for k in range(max(many, other)):
                yield a, k % many, b, k % other


def unanswered(questions: Sequence[Question], models: Sequence[str]) -> dict[str, int]:
    """How many questions each model left unanswered that another answered."""
    return {m: sum(m not in question.answers for question in questions) for m in models}
