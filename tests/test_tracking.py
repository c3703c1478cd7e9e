"""What a run writes: strict JSON lines that survive a kill, a live line, a curve."""

import io
import json
import math

import pytest

from jopsd.tracking import Progress, curve, open_tracker, read_metrics, replace_text, sparkline


def strict_rows(run_dir) -> list[dict]:
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_numbers_come_back_in_every_bit_and_what_is_not_finite_is_null(tmp_path):
    values = {"third": 1 / 3, "tiny": 5e-324, "whole": 7, "nan": math.nan, "inf": math.inf, "minus": -math.inf}
    with open_tracker(tmp_path / "new/run", tensorboard=True, resume_step=None) as tracker:
        tracker.write(3, values)
    expected = {"step": 3, "third": 1 / 3, "tiny": 5e-324, "whole": 7.0, "nan": None, "inf": None, "minus": None}
    assert strict_rows(tmp_path / "new/run") == [expected] == read_metrics(tmp_path / "new/run")
    assert list((tmp_path / "new/run/tensorboard").glob("events.*"))


def test_a_row_is_on_disk_as_soon_as_it_is_written(tmp_path):
    with open_tracker(tmp_path, tensorboard=False, resume_step=None) as tracker:
        tracker.write(1, {"loss": 1.0})
        assert strict_rows(tmp_path) == [{"step": 1, "loss": 1.0}]


@pytest.mark.parametrize("cut", range(1, 25))
def test_a_line_torn_at_any_byte_is_left_out_and_written_again(tmp_path, cut):
    whole, torn = '{"step": 1, "loss": 0.5}\n', '{"step": 2, "loss": 0.25}\n'
    (tmp_path / "metrics.jsonl").write_text(whole + torn[:cut])
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 0.5}]
    with open_tracker(tmp_path, tensorboard=False, resume_step=1) as tracker:
        tracker.write(2, {"loss": 0.25})
    assert (tmp_path / "metrics.jsonl").read_text() == whole + torn


def test_resuming_drops_what_came_after_the_checkpoint_and_keeps_the_rest_byte_for_byte(tmp_path):
    lines = [f'{{"step": {step}, "loss": {step / 7}}}\n' for step in (0, 1, 1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    with open_tracker(tmp_path, tensorboard=False, resume_step=1):
        pass
    assert (tmp_path / "metrics.jsonl").read_text() == "".join(lines[:3])


def test_without_a_checkpoint_everything_is_written_again_step_0_included(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "eval/accuracy": 0.5}\n')
    with open_tracker(tmp_path, tensorboard=False, resume_step=None):
        pass
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_a_run_without_metrics_has_no_rows(tmp_path):
    assert read_metrics(tmp_path) == []


def test_a_text_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "config.yaml"
    replace_text(path, "old")
    monkeypatch.setattr("os.replace", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        replace_text(path, "new")
    assert path.read_text() == "old"


def test_samples_are_readable_lines_named_by_step(tmp_path):
    samples = [{"completion": "π\nzwei", "reward": None}, {"completion": "", "reward": 1.0}]
    with open_tracker(tmp_path, tensorboard=False, resume_step=None) as tracker:
        tracker.dump_samples(7, [{"stale": 1}] * 3)
        tracker.dump_samples(7, samples)
    text = (tmp_path / "samples/step_000007.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line) for line in text.splitlines()] == samples and "π" in text


@pytest.mark.parametrize(
    ("values", "blocks"),
    [([], ""), ([0, 1], "▁█"), ([0.124, 0.126, 0.5, 0.999], "▁▂▅█"), ([k / 8 for k in range(8)], "▁▂▃▄▅▆▇█")],
)
def test_a_sparkline_has_one_block_per_eighth(values, blocks):
    assert sparkline(values) == blocks


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_appends_lines_to_a_file_and_rewrites_one_on_a_terminal():
    metrics = {"loss": 0.12345, "reward": 0.5, "time/tokens_per_second": 99.6}
    for stream in (io.StringIO(), Terminal()):
        progress = Progress(10, 0, stream)
        progress.show(1, metrics)
        progress.show(2, metrics)
        progress.say("said")
        lines = stream.getvalue().split("\n")
        assert lines[-2:] == ["said", ""]
        if stream.isatty():
            assert len(lines) == 3 and lines[0].count("\r\x1b[K") == 2
        else:
            assert [line[:32] for line in lines[:2]] == [f"step {i}/10  loss 0.1235  reward 0" for i in (1, 2)]
        assert "100 tok/s" in lines[0] and "ETA 0:00" in lines[0] and "length" not in lines[0]


def test_the_curve_is_drawn_also_where_losses_are_missing_or_null(tmp_path):
    evaluation = {"eval/accuracy": 0.5, "eval/accuracy_low": 0.4, "eval/accuracy_high": 0.6}
    for rows in (
        [{"step": 0} | evaluation],
        [{"step": 0} | evaluation, {"step": 1, "loss": None}, {"step": 2, "loss": 1}],
    ):
        curve(rows, tmp_path / "curve.png")
        assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
