"""What is checked of rows, tokenizers and the host before a run, so that a mistake is an error of one line."""

from collections import Counter
from pathlib import Path

from jopsd.config import Config, ConfigError
from jopsd.data.problem import Problem
from jopsd.data.remarks import Remark, doubts, told
from jopsd.models.hf import CONFIG, read_config
from jopsd.models.safetensors_files import read_json
from jopsd.models.tokenizer import control_tokens, solution_ids
from jopsd.prompts import Item, Tokenizers
from jopsd.rewards.grader import fault_of_row, gold_field, gold_of, require_sandbox, verifier_of
from jopsd.rewards.sandbox import SandboxError
from jopsd.schema import Data


def check_sandbox(config: Config) -> None:
    """Raises ConfigError where programs are to be run and this host cannot keep them in."""
    try:
        require_sandbox(config.reward)
    except SandboxError as error:
        raise ConfigError(
            f"reward.name {config.reward.name} runs programs that a model writes: {error}; run where the kernel offers "
            "more (docs/rewards.md says what), or, on a machine that you can lose, set reward.unsafe: true"
        ) from None


def check_weights(data: Data) -> None:
    """Raises ConfigError for weights in `eval.data.mix`: every row is evaluated once."""
    for key, part, weight in data.parts("eval.data"):
        if weight != 1:
            raise ConfigError(
                f"{key}.weight is {weight:g}, for {part.source}: held-out rows are evaluated once each, whatever their "
                "source; remove it, or set limit to take fewer rows"
            )


def gradable(reward: str, data: Data, label: str, problems: list[Problem]) -> tuple[list[Problem], Counter[str]]:
    """Problems that their verifier can grade, and how many it cannot, by reason.

    Raises:
      ConfigError: one that it cannot under on_bad_row: error, or nothing but such.
    """
    faults = [fault_of_row(reward, problem) for problem in problems]
    kept = [problem for problem, fault in zip(problems, faults, strict=True) if fault is None]
    first = next((number for number, fault in enumerate(faults) if fault is not None), None)
    if first is not None and (data.on_bad_row == "error" or not kept):
        bad, (field, fault) = problems[first], faults[first]
        raise ConfigError(
            f"{bad.source or data.source}, row {bad.row} (counted from 0), field {field!r}: {fault}; reward.name is "
            f"{reward}; fix: name the verifier of these rows, set {label}.columns.{field} to the column that holds it, "
            f"or {label}.on_bad_row: skip"
        )
    return kept, Counter(f"{fault[0]}: not one that {reward} can grade" for fault in faults if fault is not None)


def ungraded(reward: str, label: str, problems: list[Problem]) -> tuple[set[int], list[str]]:
    """Places of problems with nothing to grade by, and a line that says so; for methods that learn from no grade."""
    lacking = [place for place, problem in enumerate(problems) if gold_of_row(reward, problem) is None]
    if not lacking:
        return set(), []
    first, field = problems[lacking[0]], gold_field(reward) or "answer"
    line = (
        f"{label}: {len(lacking)} of {len(problems)} rows have no {field}, so their rollouts have no reward in the "
        f"logs (nothing else needs one); the first is row {first.row} (counted from 0); set {label}.columns.{field} to "
        "the column that holds it, or reward: null"
    )
    return set(lacking), [line]


def gold_of_row(reward: str, problem: Problem) -> str | None:
    """What the verifier of a row compares with, or, where the row names none, may compare with; None without any."""
    name = verifier_of(reward, problem)
    return (problem.answer or problem.tests) if name is None else gold_of(name, problem)


def remarks_of(reward: str | None, label: str, problems: list[Problem]) -> list[str]:
    """Lines on how rows were read, and on answers that hardly a completion will match."""
    found = [(problem.row, remark) for problem in problems for remark in problem.remarks]
    for problem in problems:
        if reward is not None and verifier_of(reward, problem) == "math" and problem.answer is not None:
            found += [(problem.row, remark) for remark in doubts(problem.answer)]
    return told(label, found)


def spelled_control_tokens(tokenizer, label: str, problems: list[Problem]) -> list[str]:
    """A line on rows whose texts spell control tokens out, which are read as text."""
    pattern, found = control_tokens(tokenizer), []
    for problem in problems if pattern else ():
        texts = [problem.problem, problem.solution, problem.system, *(text for _, text in problem.history)]
        if match := next((match for text in texts if text and (match := pattern.search(text))), None):
            remark = Remark("control tokens spelled out, which are read as text", match[0])
            found.append((problem.row, remark))
    return told(label, found)


def check_same_vocabulary(key: str, directory: Path, tokenizer, student, vocab_size: int) -> None:
    ours, theirs = student.get_vocab(), tokenizer.get_vocab()
    differing = [token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token)]
    size = read_config(directory).vocab_size
    if differing or size < vocab_size:
        what = f"token {min(differing)!r} is another" if differing else f"it has {size} entries, not {vocab_size}"
        raise ConfigError(
            f"{key} {str(directory)!r} has another vocabulary than the student ({what}), so it cannot score the "
            "student's tokens; use a model of the same family"
        )


def check_teachers(config: Config, problems: list[Problem]) -> None:
    """Raises ValueError for a row whose teacher is none of `teacher.models`."""
    models = config.teacher.models
    for number, problem in enumerate(problems if models else []):
        if problem.teacher not in models:
            raise ValueError(
                f"{problem.source or config.data.source}, problem {number} (id {problem.id}): method "
                f"{config.method.name} finds no teacher {problem.teacher!r}; teacher.models has {sorted(models)}"
            )


def check_vocabulary(directory: Path, vocab_size: int, tokenizer, stop_ids, items: list[Item]) -> None:
    """A tokenizer may know tokens that the model lacks (a pad token added later), but no row may use one.

    Raises:
      ConfigError: a stop token, prompt or solution outside the vocabulary.
    """
    if max(*tokenizer.get_vocab().values(), *stop_ids) < vocab_size:
        return
    texts = [ids for item in items for ids in item.prompts.values()]
    texts += [tokenizer.encode(i.problem.solution, add_special_tokens=False) for i in items if i.problem.solution]
    used = max((token for ids in [stop_ids, *texts] for token in ids), default=0)
    if used >= vocab_size:
        raise ConfigError(
            f"{directory}: its tokenizer gives token {used} ({tokenizer.convert_ids_to_tokens(used)!r}), but the model "
            f"has a vocabulary of {vocab_size}; model and tokenizer do not belong together"
        )


def window_of(directory: Path) -> int | None:
    """Tokens that a model is made for, with a stretched rotary embedding; None where its config.json does not say."""
    raw = read_json(directory / CONFIG, "")
    stated = raw.get("max_position_embeddings")
    if not stated:
        return None
    rope = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    factor, original = rope.get("factor"), rope.get("original_max_position_embeddings") or stated
    kind = rope.get("rope_type") or rope.get("type")
    stretched = int(original * factor) if factor and kind in ("yarn", "linear", "dynamic") else 0
    return max(int(stated), stretched)


def over_windows(config: Config, tokenizers: Tokenizers, train: list[Item], held_out: list[Item]) -> list[str]:
    """Lines on prompts that pass, with their completion, what the model that reads them is made for."""
    own, drawn = config.method.trains_on == "solution", config.sampling.max_new_tokens
    most = [
        min(len(solution_ids(tokenizers.student, item.problem.solution, 0)), drawn) if own else drawn for item in train
    ]
    lines = _over_windows(tokenizers, "data", train, most, "sampling.max_new_tokens")
    if config.eval is not None:
        most = [config.eval.max_new_tokens] * len(held_out)
        lines += _over_windows(tokenizers, "eval.data", held_out, most, "eval.max_new_tokens")
    return lines


def _over_windows(tokenizers: Tokenizers, label: str, items: list[Item], most: list[int], key: str) -> list[str]:
    over: dict[str, list[str]] = {}
    for item, completion in zip(items, most, strict=True):
        for view, ids in item.prompts.items():
            window = tokenizers.window_of(item.problem, view)
            if window is None or len(ids) + completion <= window:
                continue
            sizes = f"{len(ids)} tokens, which with {completion} of a completion ({key}) pass {window}"
            over.setdefault(view, []).append(f"row {item.problem.row} (counted from 0), has {sizes}")
    return [
        f"{label}: {len(found)} {view} prompts leave too little of the context that the model is made for "
        f"(max_position_embeddings in its {CONFIG}); the first, {found[0]}; lower {key}, or leave long rows out by "
        "max_prompt_tokens and on_long_prompt: skip"
        for view, found in over.items()
    ]
