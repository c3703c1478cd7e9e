"""Verdicts of published verifiers that ours contradict, each for a reason.

Read by `python -m jopsd.rewards check` and by the tests. A verdict listed here that ours agrees with is a fault, as is
one not listed that ours contradicts.
"""

# By reason: (kind of case, response). A response "P for G" is the prediction P for the gold answer G.
ON_PURPOSE: dict[str, frozenset[tuple[str, str]]] = {
    "a negated role is a role: whoever is not a knave is a knight": frozenset(
        {("kk", "\\boxed{Alice is not a knave, Bob is a knave, Carol is a knight}")}
    ),
    "a dash assigns as a colon does": frozenset({("kk", "\\boxed{ Alice - knight, Bob - knave, Carol - knight }")}),
    "the letter counts, not its case": frozenset({("sciknoweval", "<answer> a </answer>")}),
    "a letter with the text of its option is that letter": frozenset({("sciknoweval", "<answer>A. foo</answer>")}),
    "the answer stands between tags, or in a box; loose or unclosed it is none": frozenset(
        {("sciknoweval", "A"), ("sciknoweval", "<answer>A"), ("gpqa", "The answer is (C)."), ("gpqa", "c.")}
    ),
    "an input belongs to its own call": frozenset(
        {("tooluse", 'Action: search\nAction: get\nAction Input: {"q": "x", "n": 3, "id": 7}')}
    ),
    "an input may hold an object": frozenset({("tooluse", 'Action: search\nAction Input: {"q": {"a": 1}}')}),
    "equal values are equal, however they are written": frozenset(
        {
            ("math500", "\\boxed{\\dfrac{1}{2}}"),
            ("DeepMath-103K", "\\boxed{\\dfrac{1}{2}}"),
            ("DeepMath-103K", "\\boxed{0.5}"),
        }
    ),
    "a mathematical answer stands in a box": frozenset({("aime2025", "Answer: 12"), ("DeepMath-103K", "Answer: 12")}),
    "a percentage equals the number it shows and the one it means": frozenset(
        {("grade_pairs", "50\\% for 50"), ("grade_pairs", "50 for 50\\%")}
    ),
    "a currency sign is not part of a number": frozenset({("grade_pairs", "\\$5 for 5")}),
    "digits are digits in every script": frozenset(
        {("grade_pairs", "１２ for 12"), ("grade_pairs", "٤٢ for 42"), ("grade_pairs", "४२ for 42")}
    ),
    "the last box is the answer, in training too": frozenset(
        {("grpo_reward", "\\boxed{1} ... \\boxed{42}"), ("grpo_reward", "\\boxed{42} ... \\boxed{1}")}
    ),
    "a box counts wherever it stands, in the thinking too": frozenset(
        {("grpo_reward", "<think>\\boxed{42}</think> so 42")}
    ),
    "a program may import what it likes: it runs in a sandbox": frozenset(
        {("livecodebench", "```python\nimport os\ndef f(a,b):\n    return sum(a)+b\n```")}
    ),
}


def reason_for(kind: str, response: str) -> str | None:
    """Why a published verdict is contradicted; None where it is to be agreed with."""
    return next((reason for reason, keys in ON_PURPOSE.items() if (kind, response) in keys), None)


def absent(seen: set[tuple[str, str]]) -> list[tuple[str, str]]:
    """The listed cases of the kinds that were seen, but not among them."""
    kinds = {kind for kind, _ in seen}
    return sorted(key for keys in ON_PURPOSE.values() for key in keys if key[0] in kinds and key not in seen)
