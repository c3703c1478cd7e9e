"""One reader for files, patterns, directories and splits: the same rows and the same digits from every kind of file."""

import bz2
import csv
import gzip
import http.server
import json
import lzma
import threading
from functools import partial

import datasets
import pyarrow
import pytest

from jopsd.data.datasets import load_problems, load_rows

# What a reader that guesses types by column changes.
ROWS = [
    {"problem": "a; b", "answer": "007"},
    {"problem": "tab\there", "answer": "1.10"},
    {"problem": 'quo"te\nline', "answer": "2021-05-01"},
    {"problem": "é 漢", "answer": "12345678901234567890123"},
    {"problem": "NA", "answer": "null"},
    {"problem": "1e5", "answer": "True"},
]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def zstandard(data: bytes) -> bytes:
    return pyarrow.compress(data, codec="zstd", asbytes=True)


def table(path, separator=",", rows=ROWS, encoding="utf-8"):
    with open(path, "w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=separator)
        writer.writeheader()
        writer.writerows(rows)
    return path


def written(folder):
    """The same rows as a file of every kind."""
    (folder / "a.jsonl").write_text(LINES, encoding="utf-8")
    (folder / "bom.jsonl").write_text(LINES, encoding="utf-8-sig")
    (folder / "b.json").write_text(json.dumps(ROWS, indent=1))
    (folder / "c.json").write_text(json.dumps({"version": 1, "data": ROWS}, indent=1))
    (folder / "d.json").write_text(json.dumps({"rows": ROWS}))
    (folder / "e.json").write_text(json.dumps({key: [row[key] for row in ROWS] for key in ROWS[0]}))
    (folder / "f.json").write_text(json.dumps({k: {str(i): r[k] for i, r in enumerate(ROWS)} for k in ROWS[0]}))
    for name, pack in {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstandard}.items():
        (folder / f"g.jsonl.{name}").write_bytes(pack(LINES.encode()))
    table(folder / "h.csv")
    table(folder / "i.tsv", "\t")
    table(folder / "j.csv", ";")
    table(folder / "k.csv", encoding="utf-8-sig")
    (folder / "l.csv.gz").write_bytes(gzip.compress((folder / "h.csv").read_bytes()))
    datasets.Dataset.from_list(ROWS).to_parquet(folder / "m.parquet")
    return sorted(folder.iterdir())


def test_every_kind_of_file_gives_the_same_rows_and_digits(tmp_path):
    files = written(tmp_path)
    assert len(files) == 17
    for file in files:
        assert list(load_rows(str(file))) == ROWS, file.name
        assert list(load_rows(str(file), limit=2)) == ROWS[:2], file.name


@pytest.mark.parametrize("name", ["train.jsonl", "train.json", "train.csv", "train.jsonl.gz", "train.parquet"])
def test_a_directory_gives_the_rows_of_its_files(tmp_path, name):
    if name.endswith(".csv"):
        table(tmp_path / name)
    elif name.endswith(".parquet"):
        datasets.Dataset.from_list(ROWS).to_parquet(tmp_path / name)
    else:
        data = (json.dumps(ROWS) if name.endswith(".json") else LINES).encode()
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert list(load_rows(str(tmp_path))) == ROWS
    assert list(load_rows(str(tmp_path), limit=1)) == ROWS[:1]
    assert list(load_rows(str(tmp_path), split="train[1:3]")) == ROWS[1:3]
    with pytest.raises(ValueError, match="test"):
        load_rows(str(tmp_path), split="test")


def test_numbers_of_one_column_keep_their_digits_beside_texts_and_floats(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(
        '{"answer": 9007199254740993}\n{"answer": 0.5}\n{"answer": "x"}\n{"answer": 123456789012345678901}\n'
    )
    for source in (path, tmp_path):
        assert [row["answer"] for row in load_rows(str(source))] == [2**53 + 1, 0.5, "x", 123456789012345678901]


def test_a_pattern_names_several_files_of_one_kind_in_order(tmp_path):
    for name, row in zip("cab", ROWS, strict=False):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    assert list(load_rows(str(tmp_path / "*.jsonl"))) == [ROWS[1], ROWS[2], ROWS[0]]
    assert list(load_rows(str(tmp_path / "[ac].jsonl"), limit=1)) == [ROWS[1]]
    with pytest.raises(FileNotFoundError, match=r"\*\.csv'?: no file has such a name"):
        load_rows(str(tmp_path / "*.csv"))
    table(tmp_path / "d.csv")
    with pytest.raises(ValueError, match=r"files of several kinds in one source \(\.csv, \.json\)"):
        load_rows(str(tmp_path / "*"))


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path):
    (tmp_path / "a[1].jsonl").write_text(LINES, encoding="utf-8")
    assert list(load_rows(str(tmp_path / "a[1].jsonl"))) == ROWS


def test_a_url_is_read_as_the_file_that_it_is(tmp_path, monkeypatch):
    written(tmp_path)
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        at = f"http://127.0.0.1:{server.server_port}"
        for name in ("a.jsonl", "h.csv", "g.jsonl.gz"):
            assert list(load_rows(f"{at}/{name}")) == ROWS, name
        with pytest.raises(FileNotFoundError, match=f"cannot load {at}/no.jsonl"):
            load_rows(f"{at}/no.jsonl")
    finally:
        server.shutdown()
        server.server_close()


def test_one_row_that_is_an_object_of_lists_stays_a_row(tmp_path):
    turns = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]
    for row in ({"messages": turns}, {"prompt": turns[:1], "completion": turns[1:]}, {"problem": "a", "answer": "1"}):
        (tmp_path / "a.json").write_text(json.dumps(row))
        assert list(load_rows(str(tmp_path / "a.json"))) == [row]


def test_splits_inside_a_json_file_are_read_by_name(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"train": ROWS[:2], "test": ROWS[2:]}))
    said = []
    assert list(load_rows(str(tmp_path / "a.json"), say=said.append)) == ROWS[:2]
    assert list(load_rows(str(tmp_path / "a.json"), split="test", say=said.append)) == ROWS[2:] and not said


def test_a_split_or_subset_that_changes_nothing_is_said(tmp_path):
    said = []
    for file in written(tmp_path)[:1]:
        load_rows(str(file), split="test", config="main", say=said.append)
    load_problems("sums:train", split="test", limit=1, say=said.append)
    assert len(said) == 3 and "split 'test' changes nothing" in said[0] and str(tmp_path) in said[0]
    assert "subset 'main' changes nothing" in said[1]
    assert said[2].startswith("sums:train: split 'test' changes nothing")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin-1"])
def test_a_file_that_is_not_utf8_is_named_with_what_it_may_be(tmp_path, name, encoding):
    row = {"problem": "déjà", "answer": "1"}
    if name.endswith("sv"):
        text = "problem,answer\r\na,1\r\ndéjà,1\r\n".replace(",", "\t" if "tsv" in name else ",")
    else:
        text = json.dumps([row] if name == "a.json" else row, ensure_ascii=False)
    (tmp_path / name).write_bytes(text.encode(encoding))
    for source in (tmp_path / name, tmp_path):
        with pytest.raises(ValueError, match=rf"{name}.* is not UTF-8.*iconv -f (UTF-16|LATIN1)") as error:
            load_rows(str(source))
        assert ("UTF-16" in str(error.value)) == encoding.startswith("utf-16") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.csv", "problem,answer\na,1\nb\n", "a.csv, line 3: 1 cells, where the header has 2"),
        ("a.csv", "problem,answer\na,1,2\n", "a.csv, line 2: 3 cells, where the header has 2"),
        ("a.csv", "problem,problem\na,1\n", "a.csv, line 1: the header names a column twice"),
        ("a.json", '{"problem": "a",\n "answer": }\n', "a.json, line 1: broken JSON"),
    ],
)
def test_a_broken_table_or_object_is_named_with_its_line(tmp_path, name, text, told):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=told):
        load_rows(str(tmp_path / name))


def test_a_long_cell_is_read_whole(tmp_path):
    rows = [{"problem": "a", "solution": "x" * 200_000}]
    assert list(load_rows(str(table(tmp_path / "a.csv", rows=rows)))) == rows


def test_loading_prints_no_bars_and_no_remarks(tmp_path, capfd):
    datasets.Dataset.from_list(ROWS).to_parquet(tmp_path / "a.parquet")
    capfd.readouterr()
    load_rows(str(tmp_path / "a.parquet"))
    load_rows(str(tmp_path))
    assert capfd.readouterr() == ("", "")
