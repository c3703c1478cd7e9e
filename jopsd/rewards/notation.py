r"""One spelling for what Unicode and LaTeX write in many ways: the first step of `jopsd.rewards.answer.normalise`.

Every rule keeps the value: it renames a macro, drops what only looks different, or turns a character into its macro.
All are linear in the text.
"""

import re
import unicodedata

# Reordering marks make 24 look like 42, so an answer that holds one is refused; other invisible characters are dropped.
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

_FULLWIDTH = {chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F) if not 0xFF10 <= code <= 0xFF19}
_CHARACTERS = str.maketrans(
    _FULLWIDTH
    | dict.fromkeys("\u2010\u2011\u2012\u2013\u2212\ufe63", "-")
    | {"\u066a": "%", "\u066b": ".", "\u066c": ",", "\u3001": ",", "\u3002": ".", "\u2236": ":", "\u2044": "/"}
    | {"\u2215": "/", "\u00ba": "°", "\u02da": "°", "\u2a7d": "\\le ", "\u2a7e": "\\ge ", "\u2264": "\\le "}
    | {"\u2265": "\\ge ", "\u2260": "\\neq ", "\u221e": "\\infty ", "\u03c0": "\\pi ", "\u00d7": "\\times "}
    | {"\u00b7": "\\cdot ", "\u22c5": "\\cdot ", "\u2219": "\\cdot ", "\u00f7": "\\div ", "\u00b1": "\\pm "}
    | {"\u2213": "\\mp ", "\u222a": "\\cup ", "\u2229": "\\cap ", "\u2208": "\\in ", "\u2205": "\\emptyset "}
    | {"\u211d": "\\mathbb{R}", "\u2124": "\\mathbb{Z}", "\u2115": "\\mathbb{N}", "\u211a": "\\mathbb{Q}"}
    | {"\u27e8": "(", "\u27e9": ")", "\u2329": "(", "\u232a": ")", "\u2018": "'", "\u2019": "'"}
    | {"\u221b": "\\sqrt[3]", "\u221a": "\\sqrt ", "\u2026": "...", "\u22ef": "...", "\u2103": "°C", "\u2109": "°F"}
    | {"\u230a": "\\lfloor ", "\u230b": "\\rfloor ", "\u2308": "\\lceil ", "\u2309": "\\rceil "}
    | {"\u2248": "\\approx ", "\u2243": "\\simeq ", "\u2245": "\\cong ", "\u223c": "\\sim ", "\u2261": "\\equiv "}
    | {"\u2234": "\\therefore ", "\u21d2": "\\Rightarrow ", "\u2192": "\\to ", "\u2220": "\\angle "}
    | {"\uffe5": "¥", "\uffe1": "£", "\uffe0": "¢", "\u25b3": "\\triangle ", "\u25b5": "\\triangle "}
    | dict.fromkeys("\u201c\u201d\u201e\u201f\u00ab\u00bb\u2039\u203a\u300c\u300d\u300e\u300f\u3010\u3011", '"')
)
_GREEK_NAMES = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi psi"
)
_GREEK = dict(zip("αβγδεζηθικλμνξρστυφχψ", _GREEK_NAMES.split(), strict=True))
_GREEK |= {"ω": "omega", "ϕ": "phi", "ϵ": "epsilon", "ϑ": "theta"}
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_LOWERED = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋ₙ", "0123456789+-n")

_FONTS = (  # keep what they enclose
    "mathsf|mathtt|mathcal|emph|underline|boldsymbol|bm|pmb|mathord|mathbin|mathrel|mathop|mathnormal|ensuremath"
    "|fbox|boxed|framebox|tiny|small|normalsize|large|Large|LARGE|huge|Huge"
)
_SWITCHES = "rm|bf|it|sf|tt|cal|boldmath|em"
_DROPPED = (
    "displaystyle|textstyle|scriptstyle|limits|nolimits|hfill|strut|mathstrut|noindent|allowbreak|nobreak|left|right"
    "|bigl|bigr|bigm|big|Bigl|Bigr|Bigm|Big|biggl|biggr|bigg|Biggl|Biggr|Bigg"
)
_FUNCTIONS = "arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|ln|log|exp|gcd|min|max|det"
_RENAMED = {
    "lbrace": "\\{",
    "rbrace": "\\}",
    "lbrack": "[",
    "rbrack": "]",
    "langle": "(",
    "rangle": ")",
    "lvert": "|",
    "rvert": "|",
    "vert": "|",
    "cr": "\\\\",
    "varnothing": "\\emptyset ",
    "bigcup": "\\cup ",
    "bigcap": "\\cap ",
    "colon": ":",
    "lg": "\\log_{10}",
    "geqslant": "\\ge ",
    "leqslant": "\\le ",
    "longrightarrow": "\\to ",
    "rightarrow": "\\to ",
    "geq": "\\ge ",
    "leq": "\\le ",
    "ne": "\\neq ",
    "degree": "^\\circ ",
    "Omega": "\\text{ohm}",
}
_END = r"(?![A-Za-z])"
_RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:left|right)\s*\.", ""),
        (rf"\\(?:operatorname\*?|mathrm|text)\s*\{{\s*({_FUNCTIONS})\s*\}}", r"\\\1 "),
        (r"\\(?:mathbf|mathit|mathrm|text)\s*(?=\{[ $]*\\(?:[dt]?frac|sqrt|pi)\b)", ""),
        (r"\\mu\s*\\(text|mathrm)\s*\{", r"\\\1{µ"),
        (rf"\\(?:text(?:normal|up|sf|bf|it|rm|tt|sl|md)|[mh]box|operatorname\*?){_END}", r"\\text"),
        (rf"\\(?:{_DROPPED}){_END}\s?", ""),
        (r"\\(?:h|v)?phantom\s*\{[^{}]*\}|\\[hv]space\*?\s*\{[^{}]*\}", " "),
        (r"\\(?:text)?color\s*\{[^{}]*\}", ""),
        (rf"\{{\s*\\(?:{_SWITCHES}){_END}\s*([^{{}}]*)\}}", r"\\text{\1}"),
        (rf"\\(?:{_SWITCHES}|{_FONTS}){_END}\s*", ""),
        (r"\\(?:mathrm|mathbf|mathit|mathbb|text)\s*\{\s*([-+]?[\d.,/ ]+)\s*\}", r"\1"),
        (r"\\(?:mathrm|text)\s*\{\s*([ei])\s*\}(?=\s*(?:[\^}\\+*/)=-]|$))(?!.*\{j\})", r" \1"),
        (r"\\text\s*\{\s*(\\text\s*\{[^{}]*\})\s*\}", r"\1"),
        (r"\{([^{}]*)\\choose(?![A-Za-z])([^{}]*)\}", r"\\binom{\1}{\2}"),
        (r"\{([^{}]*)\\over(?![A-Za-z])([^{}]*)\}", r"\\frac{\1}{\2}"),
        (r"\\text ?\{ ?\$([^{}$]*)\$ ?\}", r"\1"),
        (rf"\\log_\s*\{{?e\}}?{_END}", r"\\ln "),
        (r"\\in\s*\\(?:mathbf|mathrm|text)\s*\{([RZNQC])\}", r"\\in \\mathbb{\1}"),
        (r"\\not\s*=", r"\\neq "),
        (r"(\\[dtc]?frac)\s*(\\pi)\s*(\d)", r"\1{\2}{\3}"),
        (r"^([a-z]) in (?=[(\[\]])", r"\1 \\in "),
        (r"\\sqrt\s*(\[[^\[\]]*\])\s*(\d)", r"\\sqrt\1{\2}"),
        (r"\\\\\s*\[[^\[\]]{1,9}(?:ex|em|pt|cm|mm)\]", r"\\\\"),
        (r"\\(begin|end)\s*\{(?:small)?matrix\}", r"\\\1{pmatrix}"),
        (r"\\mathclose|\\mathopen", ""),
        (r"(?<=\d) ?[xX] ?(?=10 ?(?:\^|\*\*))", r"\\times "),
        (r"(?<=\w) ?=< ?(?=[\w\\.-])", r"\\le "),
        (r"\s?\{\s?,\s?\}\s?", ","),
        (r"\{\s?:\s?\}", ":"),
        (r"(?<=\d,)\\[,!;: ]\s?(?=\d{3}(?!\d))", ""),
    )
)
_RENAMING = re.compile(rf"\\({'|'.join(sorted(_RENAMED, key=len, reverse=True))}){_END}")
# A Greek letter that is neither in a Greek word nor the prefix of a unit.
_GREEK_LETTER = re.compile(rf"(?<![Ͱ-Ͽἀ-῿])(?!μ[A-Za-z])[{''.join(_GREEK)}](?![Ͱ-Ͽἀ-῿])")
_OVERLINED = re.compile(r"(?:\d[\u0304\u0305])+")
_ROOT = re.compile(r"([√∛])\s?(\d+(?:\.\d+)?|[a-z])")
_HIGH = re.compile(r"(?<=[^\W_⁰¹²³⁴-⁹₀-₉]|[)}\]])([⁰¹²³⁴-⁹⁺⁻ⁿ]+)")
_LOW = re.compile(r"(?<=[^\W_⁰¹²³⁴-⁹₀-₉]|[)}\]])([₀-₉₊₋ₙ]+)")


def respell(text: str) -> str | None:
    """The text in plain ASCII digits and one spelling of each macro; None if it holds control or reordering marks.

    A superscript digit is an exponent only after something it can raise: alone it is no digit.
    """
    text = _OVERLINED.sub(lambda match: f"\\overline{{{re.sub('[^0-9]', '', match[0])}}}", text)
    text = _GREEK_LETTER.sub(lambda match: f"\\{_GREEK[match[0]]} ", text)
    text = _ROOT.sub(r"\1{\2}", text)
    text = _HIGH.sub(lambda match: f"^{{{match[1].translate(_RAISED)}}}", text)
    text = _LOW.sub(lambda match: f"_{{{match[1].translate(_LOWERED)}}}", text)
    characters = []
    for character in text.translate(_CHARACTERS):
        category = unicodedata.category(character)
        if category == "Nd":
            characters.append(str(unicodedata.decimal(character)))
        elif character in _BIDI or (category == "Cc" and not character.isspace()):
            return None
        elif category == "No" and "\u2044" in (parts := unicodedata.normalize("NFKC", character)):
            characters.append("\\frac{{{}}}{{{}}}".format(*parts.split("\u2044")))
        elif category != "Cf":
            characters.append(character)
    text = " ".join("".join(characters).split())
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return _RENAMING.sub(lambda match: _RENAMED[match[1]], text)
