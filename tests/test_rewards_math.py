"""The mathematical verifier against golden verdicts, exact arithmetic and killed processes."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
import unicodedata
from fractions import Fraction
from pathlib import Path

import pytest

from jopsd.rewards.answer import normalise, too_complex
from jopsd.rewards.boxed import last_boxed
from jopsd.rewards.golds import doubt
from jopsd.rewards.math import Question, Verdict, grade, quick_grade, verify
from jopsd.rewards.number import exact_number
from jopsd.rewards.pool import MathPool

REPO = Path(__file__).resolve().parent.parent
BIGNUM = "(10^{9999})^{9999}"  # one call in C that no Python alarm can interrupt

EXTRACTIONS = [
    ("\\boxed{ 42 }", "42"),
    ("a \\boxed{1} b \\boxed{2}", "2"),
    ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
    ("\\boxed{42", None),
    ("\\boxed{1} \\boxed{42", None),
    ("\\boxed 42", None),
    ("\\boxedx{3}", None),
    ("\\fbox{3}", None),
    ("\\boxed{}", ""),
    ("\\boxed{a}{b}", "a"),
    ("\\boxed{{x}}", "{x}"),
    ("x } \\boxed{7}", "7"),
    ("no box", None),
]
EQUAL = [
    ("42.0", "42"),
    ("042", "42"),
    ("1,000", "1000"),
    ("1\\,000", "1000"),
    ("12{,}345", "12345"),
    ("\\frac12", "0.5"),
    ("\\dfrac{-1}{2}", "-\\frac{1}{2}"),
    ("1\\frac{1}{2}", "3/2"),
    ("0.333333", "\\frac13"),
    ("\\$36", "36"),
    ("$5$", "5"),
    ("\\left(42\\right)", "42"),
    ("10^\\circ", "10"),
    ("\\text{(C)}", "C"),
    ("\\text{even}", "even"),
    ("5.", "5"),
    ("４२", "42"),
    ("४२", "42"),
    ("\u22127", "-7"),
    ("2.5\\times10^{-3}", "0.0025"),
    ("1e6", "1000000"),
    ("0.\\overline{3}", "\\frac{1}{3}"),
    ("0.1\\overline{6}", "1/6"),
    ("4 4/9", "\\frac{40}{9}"),
    ("1½", "3/2"),
    ("{1 \\over 2}", "0.5"),
    ("=5", "5"),
    ("\\text{The answer is } 5", "5"),
    ("\\textcolor{red}{42}", "42"),
    ("12\\frac12\\%", "12.5\\%"),
    ("50\\text{ percent}", "50\\%"),
    ("15\\text{ cm}^2", "15"),
    ("15~\\mathrm{cm^2}", "15\\text{ square centimeters}"),
    ("15 miles per hour", "15\\text{ mph}"),
    ("1.5 \\text{ million dollars}", "1500000"),
    ("€5", "5"),
    ("7:30 p.m.", "7:30\\text{ PM}"),
    ("6:4", "3:2"),
    ("70_{10}", "70"),
    ("204_{5}", "204_5"),
    ("\\textbf{(C)}\\ 42", "42"),
    ("3,14", "3.14"),
    ("\\text{Ann and Bob}", "Ann, Bob"),
]
PREDICTIONS_ONLY = {"\\textbf{(C)}\\ 42", "3,14"}  # no gold is written so
DIFFERENT = [
    ("", "42"),
    ("-7", "7"),
    ("0.3333", "\\frac13"),
    ("1 2", "12"),
    ("\\frac{5}{0}", "5"),
    ("5#6", "5"),
    ("5\x006", "5"),
    ("10,00", "1000"),
    ("1,0000", "10000"),
    ("3,14", "314"),
    ("15\\text{ cm}", "15\\text{ m}"),
    ("15\\text{ cm}^2", "15\\text{ cm}"),
    ("15\\text{ million}", "15"),
    ("5\\text{ or more}", "5"),
    ("5\\text{ is wrong}", "5"),
    ("42_5", "42"),
    ("204", "204_5"),
    ("1:00", "12:00"),
    ("4:30\\text{ a.m.}", "4:30\\text{ p.m.}"),
    ("50\\%", "5\\%"),
    ("0.3333338", "\\frac13"),
    ("3", "3\\mathbf{i}+4\\mathbf{j}"),
    ("0", "\\pi(R^2-r^2)"),
    ("2^{2024}", "2^{2024}-1"),
    ("\\text{ACB}", "\\text{ABC}"),
    ("²", "9"),
    ("\u202e24\u202c", "42"),
    ("2^{99999}", "5"),
    ("9^{9^{9^{9}}}", "5"),
    ("9**9**9**9", "1"),
    ("1" * 300, "5"),
    ("(" * 100 + "5" + ")" * 100, "5"),
]


@pytest.fixture(scope="module")
def pool():
    with MathPool(workers=1) as pool:
        yield pool


@pytest.mark.parametrize(("text", "expected"), EXTRACTIONS)
def test_the_last_box_is_extracted_as_the_reference_evaluators_do(text, expected):
    assert last_boxed(text) == expected


@pytest.mark.parametrize("junk", ["\\boxed{", "\\boxed{{", "\\boxed", "}\\boxed{("])
def test_megabytes_of_boxes_take_linear_time(junk):
    text = junk * (4_000_000 // len(junk))
    start = time.perf_counter()
    assert last_boxed(text) is None
    assert time.perf_counter() - start < 0.5


@pytest.mark.parametrize(("prediction", "gold"), EQUAL)
def test_equal_answers_are_accepted_without_algebra(prediction, gold):
    assert quick_grade(prediction, gold).correct
    assert prediction in PREDICTIONS_ONLY or quick_grade(gold, prediction).correct


@pytest.mark.parametrize(("prediction", "gold"), DIFFERENT)
def test_wrong_or_hostile_answers_are_refused(prediction, gold):
    assert not grade(prediction, gold).correct


def test_plain_numbers_agree_with_exact_fractions():
    rng = random.Random(0)
    spellings = [
        lambda a, b: (f"{a}/{b}", Fraction(a, b)),
        lambda a, b: (f"-\\frac{{{a}}}{{{b}}}", -Fraction(a, b)),
        lambda a, b: (f"\\tfrac{{{a}}}{{-{b}}}", -Fraction(a, b)),
        lambda a, b: (f"{a:,}.{b}", Fraction(f"{a}.{b}")),
        lambda a, b: (f"{a}\\frac{{1}}{{{b}}}", a + Fraction(1, b)),
        lambda a, b: (f"-{a}", Fraction(-a)),
    ]
    for _ in range(500):
        text, value = rng.choice(spellings)(rng.randrange(1, 10**6), rng.randrange(1, 10**4))
        assert exact_number(normalise(text)).value == value, text


def test_digits_of_every_script_are_digits():
    digits = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) == "Nd"]
    zeros = [digit for digit in digits if unicodedata.decimal(digit) == 0]
    assert len(zeros) > 60
    for zero in zeros:
        table = {str(n): chr(ord(zero) + n) for n in range(10)}
        written = lambda text, table=table: text.translate(str.maketrans(table))  # noqa: E731
        for said, meant in [("42", "42"), ("-7", "-7"), ("3.5", "7/2"), ("1,234", "1234"), ("\\frac{1}{2}", "0.5")]:
            assert quick_grade(written(said), meant).correct and quick_grade(meant, written(said)).correct, ord(zero)
        assert not quick_grade(written("24"), "42").correct


PIECES = (
    *(
        "{",
        "}",
        "(",
        "\\text{",
        "\\text{cm}",
        "\\text{cm}^2",
        "\\text{ million}",
        "\\text{(C) }",
        "{\\rm a}",
        "$",
        " ",
        "½",
    ),
    *(
        "\\frac{",
        "\\frac12",
        "\\sqrt(",
        "\\phantom{}",
        "\\mathrm{e}",
        "^\\circ",
        "1,",
        "1 000 ",
        ".",
        "=",
        '"',
        "**",
        "²",
        "!",
    ),
    *("\\pm", "√2", "\\begin{pmatrix}", "and ", "cm ", "/", "12:00", "\\overline{3}", "10^", "\\%", "R r ", "\\,", "~"),
)
READ_JUNK = """
import random, sys, time
from jopsd.rewards.math import quick_grade
draw = random.Random(0)
for _ in range(500):
    text = "".join(draw.sample(sys.argv[1:], 2)) * 5000
    for size in (390, 1990, 9990):
        start = time.perf_counter()
        quick_grade(text[:size], "5")
        assert time.perf_counter() - start < 2, text[:40]
print("done")
"""


def test_junk_made_of_any_two_pieces_is_read_in_linear_time():
    done = run_python(["-c", READ_JUNK, *PIECES], REPO)  # in a process that can be killed: some patterns never end
    assert done.stdout.split() == ["done"], done.stderr


def test_normalising_twice_is_normalising_once():
    for text in [side for pair in EQUAL + DIFFERENT for side in pair] + ["\\text{\\text{a}}.", "{{(C)}}", '"5".']:
        once = normalise(text)
        assert once is None or normalise(once) == once, text


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("2^{3^{2}}", False),
        ("e^{x^{2}}", False),
        ("10!", False),
        ("x^{2019}+1", False),
        ("(0;0),(1;2)", False),
        ("\\frac{1}{10^{10^{10}}}", True),
        ("\\prod_{n=1}^{10^{9}} n", True),
        ("99999!", True),
        ("(5!)!", True),
        ("1;2", False),
        ("1," * 300, True),
    ],
)
def test_only_bombs_are_refused_as_too_complex(text, refused):
    assert too_complex(text) is refused


def test_an_empty_gold_is_an_error_not_a_wrong_answer():
    for gold in ("", "  ", None):
        with pytest.raises(ValueError, match="gold answer"):
            quick_grade("5", gold)


def test_an_empty_box_is_formatted_and_wrong():
    empty, absent = verify("\\boxed{}", "5"), verify("it is 5", "5")
    assert (empty.formatted, empty.correct, empty.prediction, empty.reward) == (True, False, "", 0.0)
    assert (absent.formatted, absent.correct, absent.prediction, absent.reward) == (False, False, None, 0.0)


def test_algebra_settles_what_text_cannot(pool):
    assert quick_grade("x^2+2x+1", "(x+1)^2") == Question("x^2+2x+1", "(x+1)^2")
    pairs = [
        ("x^2+2x+1", "(x+1)^2", True),
        ("3\\sqrt{2}", "\\sqrt{18}", True),
        ("\\{1,2\\}", "\\{2,1\\}", True),
        ("x=5", "5", True),
        ("(0,1)", "[0,1]", False),
        ("\\frac{\\sqrt{7}+1}{2}", "\\frac{sqrt{7} + 1}{2}", True),
        ("1.414", "\\sqrt{2}", False),
        ("1-\\frac{1}{e}", "1+\\frac{1}{e}", False),
    ]
    scores = pool.verify_all((f"\\boxed{{{prediction}}}", gold) for prediction, gold, _ in pairs)
    assert [score.correct for score in scores] == [correct for *_, correct in pairs]


def test_tiny_numbers_that_round_to_equal_are_told_apart(pool):
    for prediction, gold in [("\\frac{1}{2006!}", "\\frac{1}{2004!}"), ("\\frac{1}{2^{99}}", "\\frac{1}{2^{98}}")]:
        assert not pool.submit(f"\\boxed{{{prediction}}}", gold).result().correct
        assert pool.submit(f"\\boxed{{{gold}}}", gold).result().correct
    assert pool.stats["numeric"] >= 2
    assert not pool.submit("\\boxed{x=\\frac{1}{2006!}}", "x=\\frac{1}{2004!}").result().correct
    assert pool.stats["unconfirmed"] == 1  # what math-verify calls equal has to be so at 50 digits


def test_without_a_number_there_is_a_worker_for_each_usable_core():
    cores = len(os.sched_getaffinity(0))
    with MathPool(None) as pool:
        pool.verify_all((f"\\boxed{{x+{n}}}", f"{n}+x+0") for n in range(2 * cores + 4))
        assert pool.stats["started"] == cores
    with pytest.raises(ValueError, match="workers .0. must be at least 1"):
        MathPool(0)


def test_a_judgement_has_its_stage_and_the_seconds_it_took(pool):
    pairs = [("\\boxed{5}", "5"), ("none", "5"), ("\\boxed{x+3}", "3+x"), ("\\boxed{x=4}", "4")]
    judged = [pool.judge(*pair).result() for pair in pairs]
    assert [j.verdict.stage for j in judged] == ["equal_text", "no_box", "numeric", "math_verify"]
    assert [j.prediction for j in judged] == ["5", None, "x+3", "x=4"]
    assert all(0 < j.verdict.seconds < 5 for j in judged)


def test_simple_answers_never_start_a_process():
    with MathPool() as pool:
        scores = pool.verify_all([("\\boxed{5}", "5"), ("\\boxed{0.5}", "1/2"), ("\\boxed{6}", "5"), ("none", "5")])
        assert [s.reward for s in scores] == [1.0, 1.0, 0.0, 0.0]
        assert pool.stats["started"] == 0 and pool.stats["jobs"] == 0


def test_repeated_answers_are_graded_once(pool):
    before = pool.stats
    scores = pool.verify_all([("\\boxed{7\\sqrt{3}}", "\\sqrt{147}")] * 5)
    assert all(score.correct for score in scores)
    assert pool.stats["jobs"] - before["jobs"] == 1 and pool.stats["cached"] - before["cached"] == 4


def test_a_job_that_no_alarm_can_stop_is_killed_at_the_deadline_and_the_pool_goes_on():
    with MathPool(workers=1, deadline=1.0) as pool:
        assert pool.submit("\\boxed{x+1}", "1+x").result().correct
        score = pool.submit(f"\\boxed{{{BIGNUM}}}", "5").result(timeout=60)
        assert score.formatted and not score.correct
        assert pool.stats["timeout"] == 1
        assert pool.submit("\\boxed{x+2}", "2+x").result().correct
        assert pool.stats["started"] == 2


def test_a_limit_is_of_processor_time_so_a_stopped_worker_changes_no_verdict():
    with MathPool(workers=1, deadline=0.5) as pool:
        assert pool.submit("\\boxed{x+1}", "1+x").result().correct
        (worker,) = pool._processes
        os.kill(worker.process.pid, signal.SIGSTOP)
        future = pool.judge("\\boxed{(x+1)^3}", "x^3+3x^2+3x+1")
        time.sleep(1.5)
        assert not future.done()
        os.kill(worker.process.pid, signal.SIGCONT)
        verdict = future.result(timeout=60).verdict
        assert verdict.correct and verdict.seconds < 0.5
        assert pool.stats["started"] == 1 and pool.stats["timeout"] == 0


def test_a_limit_in_this_process_is_of_processor_time_too():
    from jopsd.rewards.symbolic import _deadline, _DeadlineError

    with _deadline(0.05):
        time.sleep(0.2)
    with pytest.raises(_DeadlineError), _deadline(0.05):
        while True:
            pass


def test_a_first_answer_does_not_pay_for_imports():
    code = (
        "from jopsd.rewards.math import grade\n"
        "print(grade('x^2+2x+1', '(x+1)^2', seconds=0.3).correct)"  # the imports take longer
    )
    assert run_python(["-c", code], REPO).stdout.split() == ["True"]


def kill_workers(pool) -> None:
    for worker in list(pool._processes):
        os.kill(worker.process.pid, signal.SIGKILL)


def test_a_question_that_two_workers_die_of_is_a_counted_wrong_answer(monkeypatch):
    with MathPool(workers=1, deadline=60) as pool:
        assert pool.submit("\\boxed{x+1}", "1+x").result().correct
        future = pool.submit(f"\\boxed{{{BIGNUM}}}", "5")
        for started in (1, 2):
            while pool.stats["started"] < started or not pool._processes:
                time.sleep(0.05)
            time.sleep(2.0)  # by then the new worker has the question
            kill_workers(pool)
        assert not future.result(timeout=60).correct
        assert pool.stats["crashed"] == 1 and pool.stats["retries"] == 1
        assert pool.submit("\\boxed{x+2}", "2+x").result().correct


def test_a_worker_killed_once_costs_no_answer():
    with MathPool(workers=1) as pool:
        assert pool.submit("\\boxed{x+1}", "1+x").result().correct
        futures = [pool.submit(f"\\boxed{{(x+{n})^2}}", f"x^2+{2 * n}x+{n * n}") for n in range(2, 12)]
        kill_workers(pool)
        assert all(future.result(timeout=60).correct for future in futures)
        assert pool.stats["crashed"] == 0


def test_a_worker_that_cannot_start_is_an_error_that_says_how_to_look(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with MathPool(workers=1) as pool, pytest.raises(RuntimeError, match="did not start"):
        pool.submit("\\boxed{x+1}", "1+x").result(timeout=30)


def test_many_threads_get_their_own_answers(pool):
    results = {}

    def ask(n: int) -> None:
        results[n] = [pool.submit(f"\\boxed{{x+{n}+{k % 2}}}", f"{n}+x").result().correct for k in range(4)]

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(1, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n: [True, False, True, False] for n in range(1, 6)}


def test_closing_cancels_what_is_unanswered_and_refuses_more():
    pool = MathPool(workers=1)
    futures = [pool.submit(f"\\boxed{{{BIGNUM}+{n}}}", "5") for n in range(3)]
    start = time.monotonic()
    pool.close()
    assert time.monotonic() - start < 5
    for future in futures:
        with pytest.raises(RuntimeError, match="closed before"):
            future.result(timeout=1)
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit("\\boxed{5}", "5")
    pool.close()


def test_a_main_module_without_a_guard_is_not_run_again_by_the_workers(tmp_path):
    (tmp_path / "trap.py").write_text(
        "import os, sys\n"
        "from jopsd.rewards.pool import MathPool\n"
        "print('main', flush=True)\n"
        "print(MathPool(1).submit('\\\\boxed{x+1}', '1+x').result().correct, flush=True)\n"
    )
    done = run_python(["-m", "trap"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["main", "True"]


def test_workers_die_with_a_killed_parent_even_in_the_middle_of_a_job(tmp_path):
    (tmp_path / "parent.py").write_text(
        "import time\n"
        "from jopsd.rewards.pool import MathPool\n"
        "pool = MathPool(2, deadline=600)\n"
        "pool.submit('\\\\boxed{x+1}', '1+x').result()\n"
        "busy = [pool.submit('\\\\boxed{(x+y+z+w)^{500%d}}' % n, '5') for n in range(2)]\n"
        "end = time.monotonic() + 30\n"
        "while pool.stats['started'] < 2 and time.monotonic() < end: time.sleep(0.05)\n"
        "time.sleep(0.5)\n"
        "print(*[worker.process.pid for worker in pool._processes], flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "parent.py"], cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True
    )
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2 and all(alive(pid) for pid in pids)
    parent.kill()
    parent.wait()
    end = time.monotonic() + 10
    while any(alive(pid) for pid in pids) and time.monotonic() < end:
        time.sleep(0.05)
    assert not [pid for pid in pids if alive(pid)]


def test_neither_pool_nor_worker_loads_jax(tmp_path):
    code = "import sys, jopsd.rewards.pool, jopsd.rewards.worker; print('jax' in sys.modules, 'sympy' in sys.modules)"
    assert run_python(["-c", code], tmp_path).stdout.split() == ["False", "False"]


def test_a_verdict_names_its_stage():
    assert quick_grade("5", "5") == Verdict(True, "equal_text")
    assert quick_grade("5.0", "5") == Verdict(True, "number")
    assert quick_grade(None, "5") == Verdict(False, "no_box")


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPO)}


def run_python(arguments: list[str], folder: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=60)


def alive(pid: int) -> bool:
    """Running, and not merely waiting to be reaped by whoever adopted it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_feedback_says_what_is_wrong_and_never_the_gold_answer():
    assert verify("so \\boxed{4}", "4").feedback is None
    assert verify("so 4", "4").feedback == "No final answer was found: put it within \\boxed{}."
    assert verify("so \\boxed{}", "4").feedback == "No final answer was found: put it within \\boxed{}."
    assert verify("so \\boxed{5}", "123456").feedback == "The final answer 5 is not correct."
    assert len(verify("\\boxed{" + "7" * 5000 + "}", "123456").feedback) < 300


@pytest.mark.parametrize(
    ("gold", "said"),
    [
        ("3.3000000000000003", "3.3 is right as well"),
        ("(0.10000000149011612, 1)", "(0.1, 1) is right as well"),
        ("x^2+" * 30 + "1", "characters"),
        ("The answer follows from the lemma above", "sentence"),
        ("\\frac{1}{2", "braces"),
        ("9^{9^{9^{9}}}", "too complex"),
        ("NaN", "missing"),
        ("\u202e24", "nothing that can be graded"),
    ],
)
def test_a_gold_answer_that_nobody_will_meet_is_doubted(gold, said):
    assert said in doubt(gold)


@pytest.mark.parametrize(
    "gold",
    ["5", "3.3", "3.141592653589793", "\\frac{\\sqrt{3}}{2}", "\\text{no solution}", "x \\in [-2,7]", "C", "1,234,567"],
)
def test_a_usual_gold_answer_is_not_doubted(gold):
    assert doubt(gold) is None
