r"""Reads functions and constants that are written without a backslash: `5*pi/6`, `sqrt2`, `exp(-x)`, `2 sin x`.

A name counts only where it is the whole run of letters, or where single letters stand beside it (`sinx`, `2kpi`), and a
function only where an argument follows. Linear in the text.
"""

import re
from typing import NamedTuple

# By function that takes brackets: what opens, parts and closes its arguments.
_CALLS = {
    "sqrt": ("\\sqrt{", "", "}"),
    "cbrt": ("\\sqrt[3]{", "", "}"),
    "exp": ("e^{", "", "}"),
    "abs": ("|", "", "|"),
    "floor": ("\\lfloor ", "", " \\rfloor "),
    "ceil": ("\\lceil ", "", " \\rceil "),
    "ceiling": ("\\lceil ", "", " \\rceil "),
    "factorial": ("(", "", ")!"),
    "log2": ("\\log_{2}(", "", ")"),
    "log10": ("\\log_{10}(", "", ")"),
    "frac": ("\\frac{", "}{", "}"),
    "binom": ("\\binom{", "}{", "}"),
    "binomial": ("\\binom{", "}{", "}"),
    "pow": ("(", ")^{", "}"),
    "max": ("\\max(", ",", ")"),
    "min": ("\\min(", ",", ")"),
    "gcd": ("\\gcd(", ",", ")"),
    "lcm": ("\\operatorname{lcm}(", ",", ")"),
}
_PAIRED = {"frac", "binom", "binomial", "pow"}  # of two arguments
_MANY = {"max", "min", "gcd", "lcm"}
_MACROS = {"sqrt", "exp", "frac", "binom"}  # whose arguments stand in ( ) even after a backslash
_ELEMENTARY = (
    {f"{a}{name}": f"\\arc{name} " for name in ("sin", "cos", "tan") for a in ("a", "arc")}
    | {name: f"\\{name} " for name in ("sinh", "cosh", "tanh", "coth", "sech", "csch")}
    | {name: f"\\{name} " for name in ("sin", "cos", "tan", "cot", "sec", "csc", "ln", "log")}
    | {"cosec": "\\csc ", "lg": "\\log_{10} "}
)
_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi psi omega"
)
_CONSTANTS = (
    {name: f"\\{name} " for name in ("pi", *_GREEK.split())}
    | dict.fromkeys(("infinity", "inf", "infty", "oo"), "\\infty ")
    | {"Pi": "\\pi ", "Infinity": "\\infty "}
)
_WORDS = frozenset("cost cosy sins sing sink using secs tank tang tans logs cots pie pin pip pit pig api spin".split())

_KEPT = r"\\(?:text|mathrm|mathbf|mathit|mathbb|operatorname|begin|end) ?\{[^{}]*\}"
_RUN = re.compile(
    rf"{_KEPT}|(?P<macro>\\?)(?P<module>(?:np|numpy|math|sp|sympy)\.)?(?P<name>log(?:2|10)(?= ?[({{])|[A-Za-z]+)"
)
_FUNCTION = "|".join(sorted((*_ELEMENTARY, "sqrt"), key=len, reverse=True))
_PART = re.compile(rf"(?P<name>{_FUNCTION}|pi)|[A-Za-z]")
_MIXED = re.compile(rf"(?:[b-zA-Z]?(?:{_FUNCTION}))+[A-Za-z]?|[A-Za-z]?pi[A-Za-z]?")
_ARGUMENT = re.compile(
    rf" ?(?:\^ ?(?:\{{[^{{}}]*\}}|-?\d) ?|_ ?(?:\{{[^{{}}]*\}}|\w) ?)?"
    rf"(?:[\d({{|\\.]|(?:[A-Za-z]|{'|'.join(_CONSTANTS)}|{_FUNCTION})(?![A-Za-z])|[a-z]pi(?![A-Za-z]))"
)
_RADICAND = re.compile(r" ?(\d+(?:\.\d+)?|\\pi|pi|[A-Za-z])(?![A-Za-z])")
_CHOOSE = re.compile(r"(?<![A-Za-z\d])([a-z]|\d{1,9}) choose ([a-z]|\d{1,9})(?![A-Za-z\d])")
_CALCULATES = re.compile(r"[\d+*/^=(]")

Edit = tuple[int, int, str]  # from, up to, and what is written instead


class _Brackets(NamedTuple):
    """By the position of an opening bracket: where it closes, and the commas that nothing else encloses."""

    closing: dict[int, int]
    commas: dict[int, list[int]]


def with_macros(text: str) -> str:
    """The text with every such function and constant as LaTeX has it. Prose is returned as it is."""
    text = _CHOOSE.sub(r"\\binom{\1}{\2}", text)
    runs = [match for match in _RUN.finditer(text) if match["name"]]
    if not runs or (not _CALCULATES.search(text) and any(map(_is_prose, runs))):
        return text
    brackets = _find_brackets(text)
    edits = sorted(edit for match in runs for edit in _read(text, match, brackets))
    parts, done = [], 0
    for start, end, new in edits:
        parts += [text[done:start], new]
        done = end
    return "".join([*parts, text[done:]]).strip()


def _is_prose(match: re.Match) -> bool:
    name = match["name"]
    known = name in _CONSTANTS or name.lower() in _ELEMENTARY or name in _CALLS or _MIXED.fullmatch(name)
    return not match["macro"] and len(name) > 2 and (not known or name in _WORDS)


def _find_brackets(text: str) -> _Brackets:
    closing, commas, stack = {}, {}, []
    for position, character in enumerate(text):
        if character in "({[":
            stack.append(position)
            commas[position] = []
        elif character in ")}]" and stack:
            opening = stack.pop()
            if text[opening] + character in ("()", "{}", "[]"):
                closing[opening] = position
        elif character == "," and stack:
            commas[stack[-1]].append(position)
    return _Brackets(closing, commas)


def _read(text: str, match: re.Match, brackets: _Brackets) -> list[Edit]:
    """What a run of letters is, as the changes that say so in LaTeX; none where it is nothing known."""
    start, end, name, is_macro = match.start(), match.end(), match["name"], bool(match["macro"])
    opening = end + text.startswith(" ", end)
    if name.istitle() and text.startswith("(", opening):
        name = name.lower()
    if name == "log" and match["module"]:
        name = "ln"
    if name in _CALLS and (not is_macro or name in _MACROS):
        if edits := _call(text, start, end, opening, name, is_macro, brackets):
            return edits
    if is_macro:
        return []
    if name in _CONSTANTS:
        return [(start, end, _CONSTANTS[name])]
    if name == "sqrt":
        return _root(text, start, end)
    if name in _ELEMENTARY:
        follows = _ARGUMENT.match(text, end)
        is_second = name == "sec" and follows and follows[0][-1].isdigit()
        return [(start, end, _ELEMENTARY[name])] if follows and not is_second else []
    if _MIXED.fullmatch(name) and name not in _WORDS:
        return _mixed(text, end - len(name), end, brackets)
    return []


def _call(text: str, start: int, end: int, opening: int, name: str, is_macro: bool, found: _Brackets) -> list[Edit]:
    """A function with its arguments in brackets."""
    if name == "sqrt" and text.startswith("[", opening) and opening in found.closing:  # a root with its index
        edits = [(start, end, "\\sqrt")]
        opening = found.closing[opening] + 1
        if text.startswith("(", opening) and opening in found.closing:
            edits += [(opening, opening + 1, "{"), (found.closing[opening], found.closing[opening] + 1, "}")]
        return edits
    if opening not in found.closing or text[opening] == "[":
        return []
    if text[opening] == "{" and (name in ("sqrt", "frac", "binom") or name in _MANY | _PAIRED):
        return [(start, end, f"\\{name}")] if not is_macro and name in ("sqrt", "frac", "binom") else []
    commas, close = found.commas[opening], found.closing[opening]
    if len(commas) != (name in _PAIRED) and not (commas and name in _MANY):
        return []
    before, between, after = _CALLS[name]
    if text[:start].endswith("^"):
        before, after = "{" + before, after + "}"
    return [(start, opening + 1, before), *((c, c + 1, between) for c in commas), (close, close + 1, after)]


def _root(text: str, start: int, end: int) -> list[Edit]:
    """A square root of the one number or letter that follows."""
    radicand = _RADICAND.match(text, end)
    if not radicand:
        return []
    opening, closing = ("{\\sqrt{", "}}") if text[:start].endswith("^") else ("\\sqrt{", "}")
    return [(start, radicand.start(1), opening), (radicand.end(), radicand.end(), closing)]


def _mixed(text: str, start: int, end: int, brackets: _Brackets) -> list[Edit]:
    """Names with single letters beside them, as in xsinx."""
    edits: list[Edit] = []
    for part in _PART.finditer(text, start, end):
        name = part["name"]
        if name == "pi":
            edits.append((part.start(), part.end(), " \\pi "))
        elif name == "sqrt":
            opening = part.end() + text.startswith(" ", part.end())
            call = _call(text, *part.span(), opening, name, False, brackets)
            edits += call or _root(text, *part.span())
        elif name:
            if part.end() == end and not _ARGUMENT.match(text, end):
                return []
            edits.append((part.start(), part.end(), f" {_ELEMENTARY[name]}"))
    return edits
