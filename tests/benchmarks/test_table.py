"""What `make bench` writes: the tables, from results files."""

import json

import pytest

from benchmarks import table


def result(**changes):
    row = {
        "work": "a: captions", "peer": table.REFERENCE, "dtype": "fp32", "peer_seconds": 8.0, "seconds": 2.0,
        "ratio": 4.0, "peer_peak_gb": 3.0, "peak_gb": 1.5,
    }  # fmt: skip
    return row | changes


def content(rows, date="2030-01-02"):
    about = {"date": date, "machine": {"processor": "A Chip"}, "size": "A Size", "threads": 2, "repeats": 5}
    return about | {"rows": rows}


def test_readme_shows_a_column_for_each_peer_and_precision():
    rows = [result(), result(peer="Idefics", ratio=6.0), result(work="f: training", dtype="bf16", ratio=2.25)]
    lines = table.short(content(rows)).splitlines()
    assert lines[0].count("|") == 5
    assert lines[2] == "| a: captions | **4.0** (50%) | **6.0** (50%) |  |"
    assert lines[3] == "| f: training |  |  | **2.2** (50%) |"
    assert "A Size, 2 threads of A Chip, 2030-01-02" in lines[-1]


def test_the_newest_results_are_taken(tmp_path):
    for name, date in (("bench-z", "2029-12-31"), ("bench-a", "2030-01-02"), ("other-z", "2031-01-01")):
        (tmp_path / f"{name}.json").write_text(json.dumps(content([], date)), encoding="utf-8")
    assert [file.name for file in table.newest_of_each(tmp_path)] == ["bench-a.json"]


def test_each_instruction_set_has_a_table_that_names_the_processor(tmp_path):
    for name, date, kind, flags, rows in (
        ("bench-old", "2030-01-01", None, ["avx512f"], [result()] * 3),
        ("bench-new", "2030-01-02", "AVX512", ["avx512f"], [result()] * 2),
        ("bench-lesser", "2029-01-02", "AVX2", ["avx2"], [result(ratio=4.2)]),
    ):
        made = content(rows, date)
        made["machine"] |= {"vector_units": flags} | ({"instruction_set": kind} if kind else {})
        (tmp_path / f"{name}.json").write_text(json.dumps(made), encoding="utf-8")
    files = table.newest_of_each(tmp_path)
    assert [file.stem for file in files] == ["bench-new", "bench-lesser"]
    readme = tmp_path / "README.md"
    readme.write_text(f"{table.BEGIN}\n{table.END}\n", encoding="utf-8")
    assert table.write(*files, readme=readme)
    text = readme.read_text(encoding="utf-8")
    assert "A Chip (AVX-512)" in text and "A Chip (AVX2)" in text and "**4.2**" in text
    assert table.units({"instruction_set": "AVX2", "vector_units": ["avx512f"]}) != " (AVX2)"


def test_no_results_say_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="make bench"):
        table.newest_of_each(tmp_path)


def test_the_table_replaces_what_stood_between_the_marks(tmp_path):
    results, readme = tmp_path / "bench-a.json", tmp_path / "README.md"
    results.write_text(json.dumps(content([result()])), encoding="utf-8")
    readme.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n", encoding="utf-8")
    for _ in range(2):  # a second time changes nothing
        assert table.write(results, readme=readme)
    text = readme.read_text(encoding="utf-8")
    assert text.startswith(f"before\n{table.BEGIN}\n| times") and text.endswith(f"{table.END}\nafter\n")
    assert "old" not in text and text.count("**4.0**") == 1


def test_a_readme_without_marks_is_left_alone(tmp_path):
    results, readme = tmp_path / "bench-a.json", tmp_path / "README.md"
    results.write_text(json.dumps(content([result()])), encoding="utf-8")
    readme.write_text("words", encoding="utf-8")
    assert not table.write(results, readme=readme)
    assert readme.read_text(encoding="utf-8") == "words"


def test_outputs_say_how_answers_compare():
    assert table.outputs(result(same_answers=1.0, logits_mean_of_std=1e-6)) == "equal, logits ± 1e-06 σ"
    assert table.outputs(result(same_answers=0.5)) == "50% equal"
    assert table.outputs(result()) == ""


def test_parts_show_shares_and_what_they_achieve():
    shares = dict.fromkeys(table.PARTS, 0.2)
    rows = [result(shares=shares, of_ceiling={"vision": 0.75}), result(peer="Idefics", shares=shares, of_ceiling={})]
    assert table.parts(rows).splitlines()[2:] == ["| a: captions | fp32 | 20% (0.75) | 20% | 20% | 20% | 20% |"]
