r"""What trails a mathematical answer: a unit, a noun, a percent sign, "million", or words that change what it says.

`read_tail` splits a normalised answer; `quantity` reads one that is a plain number with a tail. Linear and bounded.
"""

import re
import unicodedata
from fractions import Fraction
from typing import NamedTuple

from jopsd.rewards.number import Number, exact_number, same_number
from jopsd.rewards.remarks import changes

MAX_TAIL_CHARS = 400

# By unit: its spellings. Two known units that differ are two answers; a unit against none is not compared.
_SPELLINGS = {
    "metre": "m meter meters metre metres м 米",
    "centimetre": "cm centimeter centimeters centimetre centimetres см 厘米 公分 センチ センチメートル",
    "millimetre": "mm millimeter millimeters millimetre millimetres мм 毫米",
    "micrometre": "µm μm",
    "kilometre": "km kilometer kilometers kilometre kilometres kms км 千米 公里 キロメートル",
    "inch": "in inch inches 英寸",
    "foot": "ft foot feet 英尺",
    "yard": "yd yard yards",
    "mile": "mi mile miles 英里",
    "gram": "g gm gram grams г гр 克 グラム",
    "kilogram": "kg kgs kilogram kilograms кг 千克 公斤 キログラム",
    "milligram": "mg milligram milligrams",
    "tonne": "tonne tonnes ton tons т 吨",
    "pound": "lb lbs pound pounds",
    "ounce": "oz ounce ounces",
    "second": "s sec secs second seconds с сек 秒",
    "minute": "min mins minute minutes мин минут минуты 分钟 分鐘",
    "hour": "h hr hrs hour hours ч час часа часов 小时 小時 時間",
    "day": "day days 天 日",
    "week": "week weeks 周",
    "month": "month months 个月 月",
    "year": "yr yrs year years 年 岁 歳 год года лет",
    "litre": "l liter liters litre litres л 升 リットル",
    "millilitre": "ml milliliter milliliters millilitre millilitres мл 毫升",
    "gallon": "gal gallon gallons",
    "cup": "cup cups",
    "dollar": "dollar dollars usd 美元 доллар доллара долларов",
    "cent": "cent cents ¢",
    "euro": "euro euros eur € евро 欧元",
    "sterling": "gbp £",
    "yuan": "yuan rmb cny 元 块 圆 人民币",
    "yen": "yen jpy ¥ 円 日元",
    "rupee": "rupee rupees inr rs ₹",
    "degree": "degree degrees deg ° 度 градус градуса градусов grados grad",
    "celsius": "°c celsius",
    "fahrenheit": "°f fahrenheit",
    "radian": "rad rads radian radians",
    "newton": "n newton newtons",
    "joule": "j joule joules",
    "kilojoule": "kj",
    "watt": "w watt watts",
    "volt": "v volt volts",
    "ampere": "a amp amps ampere amperes",
    "ohm": "ohm ohms",
    "hertz": "hz hertz",
    "kelvin": "k kelvin kelvins",
    "pascal": "pa pascal pascals",
    "mole": "mol mole moles",
    "electronvolt": "ev",
    "unit": "unit units",
}
_UNITS = {spelling: unit for unit, spellings in _SPELLINGS.items() for spelling in spellings.split()}
_UNITS |= {"mph": "mile/hour", "kmh": "kilometre/hour", "kph": "kilometre/hour", "kmph": "kilometre/hour"}
_POWERS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3}
_POWERS |= {"кв": 2, "квадратных": 2, "平方": 2, "куб": 3, "кубических": 3, "立方": 3}
_BY = {"/", "per", "a", "an", "each", "every"}
_POWERS_OF_TEN = {
    2: "hundred 百",
    3: "thousand тысяча тысячи тысяч тыс tausend mille mil 千 천",
    4: "万 萬 만",
    5: "lakh lakhs लाख",
    6: "million millions миллион миллиона миллионов млн millionen millones milhões milioni",
    7: "crore crores करोड",
    8: "亿 億 억",
    9: "billion billions миллиард миллиарда миллиардов млрд milliarden milliards",
    12: "trillion trillions 兆",
}
_MULTIPLIERS = {word: power for power, words in _POWERS_OF_TEN.items() for word in words.split()}
_PERCENT = {"%", "percent", "percentage", "pct", "per cent", "процент", "процента", "процентов", "prozent"}
_MONEY = "€£¥₹₽₩₪฿₫₺₴₦₱₡¢"

_FUNCTIONS = frozenset("sin cos tan cot sec csc log ln exp sqrt lim max min gcd lcm mod frac cdot pi".split())

_MACRO = r"\\(?:text|mathrm|mathbf|mathit)"
_POWER = r"\s?\^\s?(?:\{\s?-?\d\s?\}|\d)"
_FRACTION = r"\\frac ?(?:\{[^{}]*\} ?\{[^{}]*\}|\d ?\d)"
_NUMBER_AT_START = re.compile(
    rf"[+-]? ?(?:[\d.,]+(?: \d{{3}}(?!\d))*(?: ?{_FRACTION}| ?/ ?[\d.]+| \d+ ?/ ?\d+"
    rf"| ?(?:\\times|\\cdot) ?10 ?\^ ?(?:\{{[^{{}}]*\}}|\d+))?|{_FRACTION})"
)
_MACRO_TAIL = re.compile(rf"\s*(?:\^\\circ\s*)?(?:{_MACRO}|\\frac\s*\{{\s*{_MACRO}|\\%)")
_WORD_TAIL = re.compile(rf"\s*(?:\^\\circ|[^\W\d_]|[{_MONEY}°])|\s+[(\[]")
_ORDINAL = re.compile(r"(\d+) ?(?:\^ ?)?(?:\{ ?)?(?:\\text ?\{ ?)?(?:st|nd|rd|th) ?\}{0,2}")
_BRACKETED = re.compile(r"(.*?)\s+[(\[]([^()\[\]]*)[)\]]\s*")
_SMALL_WORDS = frozenset("in of a an the at on for per by".split())  # not first: "in" is a unit
# Quantifiers that never give back: a long row of macros is read once.
_MACROS_AT_END = re.compile(rf"(?: ?+(?:/ ?+)?+\\(?:text|mathrm) ?+\{{[^{{}}]*+\}}(?:{_POWER})?+)++ ?$")
_COMPLETE = re.compile(r"(?:[\d})\]!|]|\\pi|\\infty|(?<![A-Za-z\\])[a-z])$")  # a value, with no operator open
_UNIT_AT_END = re.compile(rf"(?<=[}})\s])(?:square |sq |cubic )?[a-z]{{2,12}}\.?(?:{_POWER})?$")
_CURRENCY = re.compile(
    rf"([+-]?) ?(?:US|USD|EUR|GBP|INR|RMB|CNY|JPY|KRW|RUB|Rs\.?|[{_MONEY}]|\\(?:pounds|euro|yen)"
    r"|\\text\{ ?Rs\.? ?\}) ?(?=[\d.])"
)
_CLEANING = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\frac\s*\{((?:[^{}]|\{[^{}]*\})*)\}\s*\{((?:[^{}]|\{[^{}]*\})*)\}", r"\1/\2"),
        (_MACRO, " "),
        (r"\\cdot|[{}]", " "),
        (r"\\mu ?", "µ"),
        (r"\^\s*\\circ\s*", " °"),
        (r"\\%", " % "),
        (r"\s*\^\s*(-?\d)", r"^\1"),
        (r"(?<=[A-Za-z])\.(?=\s|$)|(?<=[A-Za-z])\.(?=[a-z])", " "),
        (r"^\s*\((.*)\)\s*$", r"\1"),
        (r"°\s+([CF])\b", r"°\1"),
        (r"([百千万萬亿億兆천만억]|平方|立方)", r" \1 "),
    )
)
_TOKEN = re.compile(rf"°?[^\W\d_](?:[^\W\d_]|['’-])*|\^-?\d|[/%°{_MONEY}]|\S")


class Tail(NamedTuple):
    """A normalised answer without what trails it.

    unit: a canonical unit, "" for one that is not known, None where nothing trails. changed: the tail's words where
    they change what the answer says, else "". scale: what the tail multiplies the value by.
    """

    value: str
    unit: str | None = None
    percent: bool = False
    changed: str = ""
    scale: Fraction = Fraction(1)


class Quantity(NamedTuple):
    """A number with its unit, as in `Tail`."""

    number: Number
    unit: str | None
    percent: bool


def read_tail(text: str) -> Tail:
    """Split a normalised answer into what it says and what trails it; the whole is the value where nothing does."""
    if len(text) > MAX_TAIL_CHARS:
        return Tail(text)
    if ordinal := _ORDINAL.fullmatch(text):
        return Tail(ordinal[1])
    text = _CURRENCY.sub(r"\1", text, count=1) if _CURRENCY.match(text) else text
    number = _NUMBER_AT_START.match(text)
    if number and exact_number(number[0].strip()):
        value, rest = number[0].strip(), text[number.end() :]
        is_macro = _MACRO_TAIL.match(rest)
        if (is_macro or _WORD_TAIL.match(rest)) and (tail := _trailing(value, rest, not is_macro)):
            return tail
    macros, unit = _MACROS_AT_END.search(text), _UNIT_AT_END.search(text)
    if macros and _COMPLETE.search(value := text[: macros.start()].strip()):
        if macros[0].strip().startswith("\\mathrm") and "\\mathrm" in value:
            return Tail(text)  # unit vectors, say
        return _trailing(value, macros[0], False) or Tail(value, changed=" ".join(_words(macros[0])).lower())
    if unit and (name := _canonical(_words(unit[0]))):
        return Tail(text[: unit.start()].strip(), name)
    return Tail(text)


def _words(tail: str) -> list[str]:
    tail = "".join(character for character in tail if not unicodedata.category(character).startswith("M"))
    for pattern, replacement in _CLEANING:
        tail = pattern.sub(replacement, tail)
    return _TOKEN.findall(tail)


def _trailing(value: str, tail: str, bare: bool) -> Tail | None:
    """A tail that leaves the value what it is; None for any other.

    A bare one, of letters without a macro, must be of known units or of whole words after a space.
    """
    if (bracketed := _BRACKETED.fullmatch(tail)) and bracketed[1].strip():  # 5 cm (length)
        inside = _trailing(value, f" {bracketed[2]}", bare)
        return _trailing(value, bracketed[1], bare) if inside and inside.scale == 1 and not inside.percent else None
    words = _words(bracketed[2] if bracketed else tail)
    if " ".join(words).lower() in _PERCENT:
        return Tail(value, percent=True)
    scale = Fraction(1)
    while words and words[0].lower() in _MULTIPLIERS:
        scale *= 10 ** _MULTIPLIERS[words.pop(0).lower()]
    if not words:
        return Tail(value, scale=scale)
    letters = [word for word in words if len(word) == 1 and word.isalpha() and word.isascii()]
    is_variable = bare and (not set(letters) <= set("msghL") or (letters == words and not tail[:1].isspace()))
    if not is_variable and (unit := _canonical(words)):
        return Tail(value, unit, scale=scale)
    lowered = {word.lower() for word in words}
    said = all(re.fullmatch(rf"-?(?:[^\W\d_]|['’-])+|[(),.]|\^-?\d|/|[{_MONEY}]", word) for word in words)
    if not said or changes(words):
        return None
    is_noun = tail[:1].isspace() or not words[0].isascii()
    is_noun = is_noun and not lowered & _FUNCTIONS and all(map(_is_noun, words[-1:]))
    is_noun = is_noun and all(word in _SMALL_WORDS or _is_noun(word) for word in words)
    return Tail(value, "", scale=scale) if is_noun or not bare else None


def _is_noun(word: str) -> bool:
    return word in _MONEY or (word.replace("-", "").isalpha() and (len(word) > 2 or not word.isascii() or word == "kr"))


def _canonical(tokens: list[str]) -> str | None:
    """One name for a phrase of known units ("square cm", "m/s^2", "miles per hour"); None for any other."""
    powers: dict[str, int] = {}
    sign, power, last = 1, 1, ""
    for position, token in enumerate(tokens):
        word = token if token in _UNITS else token.lower()
        if word in _BY and position:
            sign, last = -1, ""
        elif word in _POWERS and not last:
            power = _POWERS[word]
        elif word in ("squared", "cubed") and last:
            powers[last] *= _POWERS[word]
        elif word in _UNITS:
            for side, name in enumerate(_UNITS[word].split("/")):
                last = name
                powers[name] = powers.get(name, 0) + (-sign if side else sign) * power
            power = 1
        elif re.fullmatch(r"\^-?\d", word) and last:
            powers[last] *= int(word[1:])
        elif word in ("old", "long", "ago", "wide", "tall", "away") and last:
            continue
        else:
            return None
    return " ".join(f"{name}^{count}" for name, count in sorted(powers.items())) if powers else None


def quantity(tail: Tail) -> Quantity | None:
    """The exact number that an answer is, with its unit; None for any other answer."""
    number = None if tail.changed else exact_number(tail.value)
    if number is None:
        return None
    scaled = number if tail.scale == 1 else Number(number.value * tail.scale, None)
    return Quantity(scaled, tail.unit, tail.percent)


def units_differ(one: str | None, other: str | None) -> bool:
    """Whether both are known units, and two. Degrees of an angle and of a temperature are not told apart."""
    if not one or not other or one == other or "unit" in one or "unit" in other:
        return False
    return "degree^1" not in (one, other) or not {one, other} <= {"degree^1", "celsius^1", "fahrenheit^1"}


def same_quantity(one: Quantity, other: Quantity) -> bool:
    """Equal numbers whose units do not differ. A percentage equals the bare number it shows and the one it means."""
    if units_differ(one.unit, other.unit) or (one.percent and other.unit) or (other.percent and one.unit):
        return False
    if one.percent == other.percent:
        return same_number(one.number, other.number)
    percentage, plain = (one.number, other.number) if one.percent else (other.number, one.number)
    meant = Number(percentage.value / 100, None if percentage.decimals is None else percentage.decimals + 2)
    return same_number(percentage, plain) or same_number(meant, plain)
