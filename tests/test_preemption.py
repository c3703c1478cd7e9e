"""Runs that are told to end, by a signal or by the notice of a cloud host, and their continuation."""

import http.server
import signal
import subprocess
import sys
import threading
import time

import pytest

from jopsd import preemption
from jopsd.preemption import Preempted, listening
from tests.runs import assert_same_run, environment, rows, run, start, write_config

SHORT = {"lora": {"rank": 2, "alpha": 4}, "checkpoint": {"every": 100}, "log": {"tensorboard": False}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    config = write_config(tmp_path_factory.mktemp("whole"), **SHORT)
    run(config, environment())
    return config.with_suffix("")


def stop_when(config, text, number=signal.SIGTERM, then=()):
    """Starts training, sends a signal once the log holds `text`, more after `then` seconds; returns code and log."""
    process, log = start(config, environment()), config.with_suffix(".log")
    deadline = time.monotonic() + 200
    try:
        while text not in log.read_text():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.01)
        process.send_signal(number)
        for seconds in then:
            time.sleep(seconds)
            process.send_signal(number)
        return process.wait(timeout=120), log.read_text()
    finally:
        process.kill()


@pytest.mark.parametrize(
    ("moment", "number", "then"),
    [
        # `timeout -s INT` sends it twice.
        pytest.param("step 1/4", signal.SIGINT, (0.001,), id="step"),
        pytest.param("accuracy after step 2", signal.SIGTERM, (), id="evaluation", marks=pytest.mark.slow),
        pytest.param("---\n", signal.SIGTERM, (), id="start", marks=pytest.mark.slow),
    ],
)
def test_a_run_told_to_end_saves_and_goes_on_to_the_same_bits(whole, tmp_path, moment, number, then):
    config = write_config(tmp_path, **SHORT)
    code, log = stop_when(config, moment, number, then)
    name = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}[number]
    assert code == 0 and f"told to end ({name})" in log and "run the same command again to resume" in log, log
    assert "Traceback" not in log
    assert not (config.with_suffix("") / "summary.json").exists()
    run(config, environment())
    assert_same_run(config.with_suffix(""), whole)
    assert (config.with_suffix("") / "summary.json").exists()


@pytest.mark.slow
def test_an_evaluation_that_was_cut_short_is_made_up_for_once(whole, tmp_path):
    config = write_config(tmp_path, **SHORT)
    # From here on until the last evaluation is over, the run draws and grades held-out problems.
    code, log = stop_when(config, "step 4/4")
    assert code == 0
    run(config, environment())
    evaluated = [row["step"] for row in rows(config.with_suffix("")) if "eval/accuracy" in row]
    assert evaluated == [0, 2, 4]
    assert_same_run(config.with_suffix(""), whole)


def test_the_signal_is_taken_only_while_a_run_listens():
    before = signal.getsignal(signal.SIGTERM)
    with listening() as notice:
        notice.check()
        notice.meet()
        signal.raise_signal(signal.SIGTERM)
        for hears in (notice.check, notice.meet):
            with pytest.raises(Preempted):
                hears()
        assert notice.by == "SIGTERM"
    assert signal.getsignal(signal.SIGTERM) is before


BUSY = """
import signal, sys, time
from jopsd.preemption import Preempted, listening
with listening() as notice:
    notice.hear(signal.SIGINT)
    print("ready", flush=True)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # as in a long call: no handler of Python runs here
    time.sleep(20)
"""


@pytest.mark.parametrize(("pause", "ends"), [(0.01, False), (0.8, True)])
def test_the_second_signal_ends_a_process_at_once_whatever_it_does(pause, ends):
    command = [sys.executable, "-c", BUSY]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"ready\n"
            process.send_signal(signal.SIGINT)
            time.sleep(pause)
            process.send_signal(signal.SIGINT)
            if ends:
                assert process.wait(timeout=3) == 128 + signal.SIGINT
                assert b"Ctrl-C: the run saves and ends" in process.stderr.read()
            else:
                with pytest.raises(subprocess.TimeoutExpired):
                    process.wait(timeout=1)
        finally:
            process.kill()


def test_an_ignored_interrupt_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with listening() as notice:
            notice.hear(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            notice.check()
    finally:
        signal.signal(signal.SIGINT, before)


def was_given(notice):
    try:
        notice.check()
    except Preempted:
        return True
    return False


class Metadata(http.server.BaseHTTPRequestHandler):
    """A cloud host's metadata server."""

    answers: dict = {}

    def do_GET(self):
        known = self.headers["Metadata-Flavor"] == "Google" and self.path.startswith("/computeMetadata/v1/instance/")
        answer = self.answers.get(self.path.rsplit("/", 1)[-1]) if known else None
        self.send_response(404 if answer is None else 200)
        self.end_headers()
        self.wfile.write((answer or "").encode())

    def log_message(self, *_):
        pass


@pytest.mark.parametrize(
    ("notice", "told"),
    [
        ({"maintenance-event": "TERMINATE_ON_HOST_MAINTENANCE"}, True),
        ({"maintenance-event": "NONE", "preempted": "TRUE"}, True),
        ({"maintenance-event": "NONE", "preempted": "FALSE"}, False),
        ({}, False),
    ],
)
def test_the_notice_of_maintenance_is_a_signal_to_end(monkeypatch, notice, told):
    monkeypatch.setattr(preemption, "_EVERY", 0.02)
    monkeypatch.setattr(Metadata, "answers", notice)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{server.server_port}")
        with listening() as given:
            deadline = time.monotonic() + (5 if told else 0.3)
            while time.monotonic() < deadline and not was_given(given):
                time.sleep(0.01)
            assert was_given(given) == told
        server.shutdown()


def test_a_metadata_server_that_is_not_there_is_no_notice(monkeypatch):
    monkeypatch.setattr(preemption, "_EVERY", 0.01)
    monkeypatch.setenv("GCE_METADATA_HOST", "127.0.0.1:9")
    with listening() as given:
        time.sleep(0.1)
        given.check()
