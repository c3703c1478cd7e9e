"""MOPD's teacher-signal study, its contexts: what the teacher reads of each rollout under a condition.

A condition names what is shown, joined by "+": solution, another_solution, failure_solution, feedback,
summary_success_k2 (also all or failure, and any k). `SPECIAL` lists the others. Each is a `PeersContext`, so that the
teacher reads what it would read in training; where the published study reads something else (form "published"):

- its prompts end in the assistant's header already, and sections and closing sentence come after it, without a chat
  template; here they stand in the user's turn, and the header comes last;
- it shows the first success, and the first failure, by name of the rollout; here the first success in the order of the
  rollouts as given, and a failure drawn at random;
- it never takes thinking out of what is shown; here `remove_thinking` and `failure_thinking` of the context do;
- it shows summaries only where there is a first success, which form "published" does not copy.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError

from eval.analysis.rollouts import Saved
from eval.analysis.signal_data import Group, generator
from jopsd.contexts import Absent, Attempt, Context, PeersContext, Prompt
from jopsd.contexts.instructed import InstructedContext
from jopsd.contexts.peers import SECTIONS, without_thinking
from jopsd.contexts.templates import fill
from jopsd.data.problem import Problem

Form = Literal["training", "published"]
FORMS = ("training", "published")

_SUMMARIES = re.compile(r"summary_(success|all|failure)_k([1-9]\d*)")
_BETWEEN, _NUMBER = "\x1e", re.compile(r"\d+")

# Section of the context by the name it has in conditions and results.
NAMES = {
    "solution": "primary",
    "summary": "summaries",
    "another_solution": "another",
    "failure_solution": "failure",
    "feedback": "feedback",
}
SPECIAL = {
    "base": "the student's own prompt",
    "base_raw": "the prompt as it was saved with the rollout, not rendered again",
    "base_reprompt": "the teacher's turn with nothing in it: its closing sentence alone",
    "failure_only": "a failed peer, where the group has no success that could be shown",
    "random_summary_control": "two summaries of other problems' successes: the form of a context without its content",
}
CONTROL_K = 2


class Condition(NamedTuple):
    """keys: of `PeersContext`; None reads no peers. required: sections without which it is not effective."""

    name: str
    keys: Mapping[str, Any] | None
    required: tuple[str, ...] = ()


class Variant(NamedTuple):
    """What the teacher reads of one rollout.

    prompt: to be rendered with the chat template, or text to be tokenised as it is. evidence: ids of the rollouts shown
    by section; its own for feedback. effective: whether all that the condition promises is there.
    """

    condition: str
    prompt_id: str
    rollout_id: str
    prompt: Prompt | str
    evidence: Mapping[str, tuple[str, ...]]
    effective: bool

    @property
    def sections_used(self) -> dict[str, bool]:
        return {name: name in self.evidence for name in NAMES}


def parse_condition(name: str) -> Condition:
    """A condition by name.

    Raises:
      ValueError: unknown, or the same section twice; names those that there are.
    """
    if name in ("base", "base_raw"):
        return Condition(name, None)
    if name == "base_reprompt":
        return Condition(name, {})
    if name == "failure_only":
        return Condition(name, {"failure": True, "failure_condition": "when_no_solution"}, ("failure_solution",))
    if name == "random_summary_control":
        return Condition(name, {"summaries": {"k": CONTROL_K, "source": "success"}}, ("summary",))
    keys: dict[str, Any] = {}
    required = []
    for part in name.split("+"):
        summaries = _SUMMARIES.fullmatch(part)
        section = "summary" if summaries else part
        if section not in NAMES or section in required or part == "summary":
            raise ValueError(
                f"unknown condition {name!r}; known: {', '.join(SPECIAL)}, and, alone or joined by +, each once: "
                "solution, another_solution, failure_solution, feedback, summary_{success,all,failure}_kN"
            )
        keys[NAMES[section]] = {"source": summaries[1], "k": int(summaries[2])} if summaries else True
        required.append(section)
    return Condition(name, keys, tuple(required))


def context_of(condition: Condition, words: Context | None, turn: bool, success: float, form: Form) -> PeersContext:
    """The context of a condition, in the words of a run's own context.

    Args:
      words: of the run: templates of a peers context, or the student's turn of another; None is the shipped wording.
      turn: the problem is the user's whole turn already.

    Every condition reads the student's turn that the rollouts were drawn from, so whether it asks for summaries is up
    to the run and not to the condition. A success is shown a failed peer alone too, and feedback beside a solution:
    conditions say what is read.

    Raises:
      ValueError: the templates have no place for a section, by name of the condition.
    """
    given: dict[str, Any] = {"name": "peers", "wording": "boxed"}
    tag = {}
    if isinstance(words, PeersContext):
        given = {key: value for key, value in words.model_dump().items() if key not in ("peers", "summaries")}
        if words.summaries is not None:
            tag = {"tag": words.summaries.tag}
            given["student_template"] += words.summary_instruction.replace("{tag}", words.summaries.tag)
    elif isinstance(words, InstructedContext):
        given |= {"student_template": words.student_template, "instruction": words.instruction}
    if turn or form == "published":
        given |= {"student_template": "{problem}", "instruction": ""}
    if form == "published":
        given |= {"remove_thinking": False, "failure_thinking": None}
    # A context that shows nothing is refused, and of one that reads no peers only the student's turn is asked.
    shown = dict.fromkeys(SECTIONS, False) | {"summaries": None} | (condition.keys or {"primary": True})
    if shown["summaries"]:
        shown["summaries"] = {**tag, **shown["summaries"]}
    fixed = {
        "success_threshold": success,
        "failure_condition": "always",
        "failure_alone": True,
        "feedback_only_without_solution": False,
        "summary_instruction": "",
    }
    try:
        return PeersContext.model_validate(given | fixed | shown)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ValueError(f"condition {condition.name}: {reason}") from None


def make_variants(
    groups: Sequence[Group],
    conditions: Sequence[Condition],
    words: Context | None = None,
    success: float = 1.0,
    seed: int = 42,
    form: Form = "training",
) -> list[Variant]:
    """What the teacher reads of every rollout under every condition.

    A rollout for which nothing is left to show reads the student's own prompt, and is not effective. Draws depend on
    seed and prompt alone, so conditions that show one failure show the same one.

    Raises:
      ValueError: see `context_of`; or a rollout without a saved prompt where that is read.
    """
    variants = []
    for condition in conditions:
        for group in groups:
            if form == "published":
                group = _as_published(group)
            context = context_of(condition, words, group.turn, success, form)
            if condition.name == "base_raw":
                made = [_unaided(condition, group, r, _saved_prompt(r, condition.name)) for r in group.rollouts]
            elif not condition.keys:
                made = _without_peers(condition, group, context)
            elif condition.name == "random_summary_control":
                made = _with_strangers(condition, group, groups, context, seed, form)
            else:
                made = _with_peers(condition, group, group.rollouts, context, _draws(seed, group, form))
            variants += [_as_text(variant) for variant in made] if form == "published" else made
    return variants


def _with_peers(
    condition: Condition, group: Group, rollouts: Sequence[Saved], context: PeersContext, draws: Callable
) -> list[Variant]:
    """One variant for each of the rollouts. draws: makes the generator anew, with the same numbers to come."""
    attempts = [Attempt(r.text, r.reward, r.prediction, r.feedback) for r in rollouts]
    readings = context.group_prompts(group.problem, attempts, draws())
    used = _evidence(context, group.problem, attempts, draws())
    plain = context.student_prompt(group.problem)
    variants = []
    for rollout, reading, numbers in zip(rollouts, readings, used, strict=True):
        ids = {name: tuple(rollouts[i].rollout_id for i in of) for name, of in numbers.items()}
        if "feedback" in ids:
            ids["feedback"] = (rollout.rollout_id,)
        prompt = plain if isinstance(reading, Absent) else reading["teacher"]
        effective = all(name in ids for name in condition.required)
        variants.append(Variant(condition.name, group.prompt_id, rollout.rollout_id, prompt, ids, effective))
    return variants


def _evidence(
    context: PeersContext, problem: Problem, attempts: Sequence[Attempt], rng
) -> list[dict[str, tuple[int, ...]]]:
    """Which attempts each section shows, for each attempt: the same context fed with numbers in the place of texts."""
    bare = {f"{part}_template": " {attempt}" for part in ("primary", "another", "failure")}
    summaries = {f"summary_{kind}_template": " {summary}" for kind in ("success", "failure")}
    places = "{prompt}" + "".join(f"{_BETWEEN}{{{section}}}" for section in SECTIONS)
    shadow = context.model_copy(
        update={**bare, **summaries, "feedback_template": "0", "teacher_template": places, "student_template": "-"}
    )
    numbered = [a._replace(text=_outline(a.text, i)) for i, a in enumerate(attempts)]
    found = []
    for reading in shadow.group_prompts(problem, numbered, rng):
        parts = [] if isinstance(reading, Absent) else reading["teacher"].messages[-1]["content"].split(_BETWEEN)[1:]
        by_section = dict(zip(SECTIONS, parts, strict=False))
        numbers = {n: tuple(map(int, _NUMBER.findall(by_section.get(section, "")))) for n, section in NAMES.items()}
        found.append({name: of for name, of in numbers.items() if of})
    return found


def _outline(text: str, number: int) -> str:
    """The number where the text has something to show, within thinking where it has nothing else."""
    if without_thinking(text).strip():
        return str(number)
    return f"<think>{number}</think>" if text.strip() else ""


def _without_peers(condition: Condition, group: Group, context: PeersContext) -> list[Variant]:
    prompt = context.student_prompt(group.problem)
    if condition.name == "base_reprompt":
        *earlier, turn = prompt.messages
        values = {**dict.fromkeys(SECTIONS, ""), "prompt": turn["content"]}
        prompt = Prompt((*earlier, {**turn, "content": fill(context.teacher_template, values, group.prompt_id)}))
    return [_unaided(condition, group, rollout, prompt) for rollout in group.rollouts]


def _with_strangers(
    condition: Condition, group: Group, groups: Sequence[Group], context: PeersContext, seed: int, form: Form
) -> list[Variant]:
    """The rollout beside other problems' successes: one more than are shown, for the context leaves out the first."""
    strangers = [
        rollout._replace(rollout_id=f"{other.prompt_id}/{rollout.rollout_id}")
        for other in groups
        if other.prompt_id != group.prompt_id
        for rollout in other.rollouts
        if rollout.reward >= context.success_threshold
    ]
    rng, variants = generator(seed, "strangers", group.prompt_id), []
    for rollout in group.rollouts:
        drawn = [strangers[i] for i in rng.permutation(len(strangers))[: CONTROL_K + 1]]
        draws = _draws(seed, group, form)
        variants.append(_with_peers(condition, group, [rollout, *drawn], context, draws)[0])
    return variants


def _unaided(condition: Condition, group: Group, rollout: Saved, prompt: Prompt | str) -> Variant:
    return Variant(condition.name, group.prompt_id, rollout.rollout_id, prompt, {}, True)


def _as_published(group: Group) -> Group:
    """Rollouts by name, and the whole saved prompt in the place of the problem's text."""
    rollouts = tuple(sorted(group.rollouts, key=lambda rollout: rollout.rollout_id))
    text = _saved_prompt(rollouts[0], "--format published")
    return group._replace(problem=Problem(group.prompt_id, text, source=group.problem.source), rollouts=rollouts)


def _as_text(variant: Variant) -> Variant:
    prompt = variant.prompt
    return variant if isinstance(prompt, str) else variant._replace(prompt=prompt.messages[-1]["content"])


def _saved_prompt(rollout: Saved, what: str) -> str:
    prompt = rollout.prompts.get("student")
    if not isinstance(prompt, str):
        raise ValueError(f"{what} reads the prompt that a rollout was drawn from, and {rollout.source} has none")
    return prompt


def _draws(seed: int, group: Group, form: Form) -> Callable:
    """A function that makes the group's generator; the published form always takes the first failure."""

    def make():
        rng = generator(seed, "peers", group.prompt_id)
        return SimpleNamespace(integers=lambda n: 0, permutation=rng.permutation) if form == "published" else rng

    return make
