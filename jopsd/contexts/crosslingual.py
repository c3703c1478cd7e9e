"""The privileged context of COPSD: the teacher also reads the problem and its solution in English.

The structure is that of the released COPSD prompts; the words, one record per language in `languages.yaml`, are this
project's. Both readings begin their thinking with the same sentence in the problem's language.
"""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator

from jopsd.contexts.context import Context, Prompt, in_words, user_turn
from jopsd.contexts.languages import Language, Records, changed_records, read_changes, shipped_records
from jopsd.contexts.templates import fill, placeholders
from jopsd.data.problem import Problem
from jopsd.paths import expand

ENGLISH = "en"


class CrosslingualContext(Context):
    """Prompts in the problem's language, with an English reference for the teacher.

    Attributes:
      records: changes of the shipped records and templates in the form of `languages.yaml`: a path, relative to the
        working directory, or the keys and values themselves. A path is replaced by what the file holds.
      language: code of the language of all rows, over what they say themselves; null: each row's own.
      include_problem_en: the teacher reads the English problem; of an English problem without one, the problem.
      include_solution_en: the teacher reads the solution, and is told how to use it.
      label_student: the student's problem has its label too, as the teacher's; false is the published prompt of GRPO
        and of evaluation.
      think_prefix: replies begin with `<think>`, a newline and the language's own first words of thinking.
      name_language: the teacher's instruction names the language to reason in. False gives it the student's, as the
        published code does (by accident) for Swahili and the other languages of Africa.
    """

    name: Literal["crosslingual"] = "crosslingual"
    records: dict[str, Any] | None = None
    language: str | None = None
    include_problem_en: bool = True
    include_solution_en: bool = True
    label_student: bool = True
    think_prefix: bool = True
    name_language: bool = True

    @field_validator("records", mode="before")
    @classmethod
    def _records_can_be_used(cls, given: Any) -> Any:
        changes = read_changes(expand(str(given))) if isinstance(given, str | Path) else given
        if isinstance(changes, Mapping):
            changed_records(changes)
        return changes

    @field_validator("language")
    @classmethod
    def _language_is_known(cls, code: str | None, info) -> str | None:
        if code is None or "records" not in info.data:  # records that are refused already
            return code
        return _records(info.data["records"]).key_of(code)

    @cached_property
    def _all(self) -> Records:
        return _records(self.records)

    def required_fields(self, teacher: bool = True) -> tuple[str, ...]:
        fields = ["problem"]
        if self.language is None:
            fields.append("language")
        if teacher and self._reads("english") and self.language != ENGLISH:
            fields.append("problem_en")
        if teacher and self._reads("reference"):
            fields.append("solution")
        return tuple(fields)

    def student_prompt(self, problem: Problem) -> Prompt:
        """ValueError where the row has no language, one without a record, or a translation that is not its problem."""
        language = self._language_of(problem)
        texts = language.texts()
        target = self._target(problem, texts) if self.label_student else problem.problem
        return self._prompt(self._all.student_template, {**texts, "target": target}, problem, language)

    def teacher_prompt(self, problem: Problem) -> Prompt:
        """ValueError as for the student, and where a part that is included is missing."""
        language = self._language_of(problem)
        texts = language.texts()
        if not self.name_language:
            texts["teacher_instruction"] = texts["student_instruction"]
        parts = {
            "target": self._target(problem, texts),
            "english": self._part("english", {**texts, "problem_en": self._english_of(problem)}, problem),
            "reference": self._part("reference", {**texts, "solution": problem.solution}, problem),
            "guidance": self._part("guidance", texts, problem),
        }
        return self._prompt(self._all.teacher_template, {**texts, **parts}, problem, language)

    def _target(self, problem: Problem, texts: Mapping[str, str]) -> str:
        return fill(self._all.target_template, {**texts, "problem": problem.problem}, in_words(problem))

    def _part(self, part: str, values: Mapping[str, str | None], problem: Problem) -> str:
        """A part of the teacher's prompt, empty where it is left out."""
        return fill(getattr(self._all, f"{part}_template"), values, in_words(problem)) if self._reads(part) else ""

    def _reads(self, part: str) -> bool:
        included = self.include_problem_en if part == "english" else self.include_solution_en
        return included and part in placeholders(self._all.teacher_template)

    def _prompt(self, template: str, values: Mapping[str, str], problem: Problem, language: Language) -> Prompt:
        prefill = f"<think>\n{language.think_prefix}" if self.think_prefix else ""
        return Prompt(user_turn(fill(template, values, in_words(problem)), problem), prefill)

    def _key_of(self, problem: Problem) -> str:
        if self.language is not None:
            return self.language
        if problem.language is None:
            raise ValueError(f"{in_words(problem)} has no language; set context.language")
        try:
            return self._all.key_of(problem.language)
        except ValueError as error:
            raise ValueError(f"{in_words(problem)}: {error}") from None

    def _language_of(self, problem: Problem) -> Language:
        key = self._key_of(problem)
        language = self._all.languages[key]
        # What is left in `extra` was not read. Without this an English text would stand under a foreign label.
        for code in (key, *language.codes):
            text = problem.extra.get(f"problem_{code}")
            if isinstance(text, str) and text.strip():
                raise ValueError(
                    f"{in_words(problem)} has its {language.name} text in column 'problem_{code}', which is not read; "
                    f"set data.columns.problem to problem_{code}"
                )
        return language

    def _english_of(self, problem: Problem) -> str | None:
        if problem.problem_en is None and self._key_of(problem) == ENGLISH:
            return problem.problem
        return problem.problem_en


def _records(changes: Mapping[str, Any] | None) -> Records:
    return changed_records(changes) if changes else shipped_records()
