"""Settings of published evaluations, one line each."""

import difflib
from typing import NamedTuple


class Preset(NamedTuple):
    """How a paper's evaluation draws its answers.

    samples: answers per problem. seeds: evaluated apart. top_k: 0 is off. thinking: None leaves it to the chat
    template. template: the user's turn of mathematics; None is the benchmark's. benchmarks: what is evaluated unless
    something else is asked for; languages, levels: the parts of them that the paper evaluates, none given meaning all.
    source: where the values come from.
    """

    name: str
    samples: int
    seeds: tuple[int, ...]
    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int
    thinking: bool | None
    template: str | None
    benchmarks: tuple[str, ...]
    source: str
    languages: tuple[str, ...] = ()
    levels: tuple[str, ...] = ()


GOPD = "{problem}\n{instruction}"
SCIENCE = tuple(f"sciknoweval_{domain}" for domain in ("biology", "chemistry", "material", "physics"))
PUZZLES = ("kk_4to8", "kk_9", "kk_10", "kk_11")
AFRICAN = tuple("amh ewe hau ibo kin lin lug orm sna sot swa twi vai wol xho yor zul".split())
POLYMATH = tuple("bn sw te th zh es ru ja".split())
AIME = ("aime24", "aime25")
CONTESTS = (*AIME, "hmmt25_feb")

# PW-OPSD evaluates three seeds. Its sampler gives seeds s and s + 1 all samples but one in common; ours share none.
# MOPD's tool use needs a path and its programs a sandbox, so they are not among its benchmarks here.
_PRESETS = (
    Preset(
        "pw-opsd", 12, (0, 1, 2), 1.0, 0.95, 0, 38912, True, None, ("math500", *CONTESTS), "PW-OPSD, code and README"
    ),
    Preset(
        "opsd", 16, (0,), 1.0, 0.95, 0, 38912, True, None, (*CONTESTS, "amo_bench"), "OPSD, arXiv 2601.18734v1, code"
    ),
    Preset(
        "copsd-polymath", 12, (0,), 1.0, 0.95, 0, 8192, True, None, ("polymath",), "COPSD, code", POLYMATH, ("low",)
    ),
    Preset("copsd-afrimgsm", 12, (0,), 1.0, 0.95, 0, 1024, True, None, ("afrimgsm",), "COPSD, code", AFRICAN),
    Preset("rlcsd", 12, (0,), 0.6, 0.95, 20, 38912, True, None, ("amc_aimo", *AIME), "RLCSD, README, mathematics"),
    Preset("rlcsd-kk", 1, (0,), 0.6, 0.95, 20, 38912, True, None, PUZZLES, "RLCSD, README, Knights and Knaves"),
    Preset("mopd", 8, (0,), 0.6, 0.95, 0, 8192, True, None, SCIENCE, "MOPD, code and README"),
    Preset("gopd", 32, (42,), 1.0, 1.0, 0, 16384, False, GOPD, (*CONTESTS, "hmmt25_nov"), "G-OPD, code"),
)
PRESETS = {preset.name: preset for preset in _PRESETS}


def find(name: str) -> Preset:
    """The preset of this name. ValueError names the nearest one, or all."""
    if name in PRESETS:
        return PRESETS[name]
    near = difflib.get_close_matches(name.lower(), PRESETS, n=1, cutoff=0.5)
    meant = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(f"--preset {name!r} is not known{meant}; known: {', '.join(PRESETS)}")


def listing() -> str:
    """A line per preset, for people."""
    thinking = {True: "on", False: "off", None: "as the template has it"}
    return "\n".join(
        f"  {p.name:<15} {p.samples} samples, seeds {' '.join(map(str, p.seeds))}, temperature {p.temperature:g}, "
        f"top-p {p.top_p:g}, top-k {p.top_k or 'off'}, {p.max_new_tokens} tokens, thinking {thinking[p.thinking]}: "
        f"{' '.join((*p.benchmarks, *p.languages, *p.levels))} ({p.source})"
        for p in PRESETS.values()
    )
