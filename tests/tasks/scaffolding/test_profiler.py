"""Profiles of sources: types, missing values and dialects, whatever the batches."""

import datetime as dt
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from bloomery.data_contracts.errors import DataMissing, DataUnfit
from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.flows.cli.commands.reading_options import parse_names
from bloomery.tasks.ingest import locations
from bloomery.tasks.scaffolding.planning.input_planning import sounds_personal
from bloomery.tasks.scaffolding.profiling.column_names import contract_names, find_column, format_names
from bloomery.tasks.scaffolding.profiling.column_profiles import TextColumnProfiler, TypedColumnProfiler
from bloomery.tasks.scaffolding.profiling.date_inference import FormatCounter
from bloomery.tasks.scaffolding.profiling.profiler import (
    ColumnProfile,
    SourceProfile,
    count_distinct_rows,
    profile_source,
    standard_deviation,
)
from bloomery.tasks.scaffolding.source_options.csv_dialect import infer_dialect
from bloomery.tasks.scaffolding.source_options.format_detection import detect_format
from bloomery.tasks.scaffolding.yaml_writer import add_comment, dump_yaml, inline

CUTS = st.lists(st.integers(0, 40), max_size=4)


def profile_table(table: pa.Table, folder: Path) -> SourceProfile:
    path = folder / "rows.parquet"
    pq.write_table(table, path)
    return profile_source(DataSource(source=str(path)), folder)


def profile_csv(text: str, folder: Path, **options: object) -> SourceProfile:
    path = folder / "rows.csv"
    path.write_text(text, encoding="utf-8")
    return profile_source(DataSource.model_validate({"source": str(path), "strip": True, **options}), folder)


def find_column_profile(profile: SourceProfile, name: str) -> ColumnProfile:
    column = profile.column(name)
    assert column is not None
    return column


@pytest.mark.parametrize(
    ("cells", "kind", "missing"),
    [
        (["1", "2", "-3"], "integer", 0),
        (["1", "2.5", "1e3"], "number", 0),
        (["1.0", "2.0"], "number", 0),
        (["01234", "00007"], "string", 0),
        (["12345678901234567890", "1"], "string", 0),
        (["true", "False"], "boolean", 0),
        (["2024-02-29", "2023-01-01"], "date", 0),
        (["2023-02-29", "2023-01-01"], "string", 0),
        (["2024-02-29 10:00:00", "2024-02-29T10:00:00+02:00"], "timestamp", 0),
        (["1", "?", "NA", "-", "2"], "integer", 3),
        (["red", "?", "green"], "string", 1),
        (["red", "NA", "-"], "string", 0),
        (["1", "", "2"], "integer", 1),
        (["+1,5", "2,25"], "number", 0),
    ],
)
def test_texts_get_the_narrowest_type_that_preserves_them(
    cells: list[str], kind: str, missing: int, home: Path, tmp_path: Path
) -> None:
    lines = "".join(f'"{cell}",{number}\n' for number, cell in enumerate(cells))
    column = find_column_profile(profile_csv(f"a,b\n{lines}", tmp_path), "a")
    assert (column.logical_type, column.num_missing, column.num_invalid) == (kind, missing, 0)


def test_each_column_has_its_own_missing_markers(home: Path, tmp_path: Path) -> None:
    profile = profile_csv("a,b\n1,NA\nNA,red\n2,blue\n", tmp_path)
    assert profile.missing == {"a": ("NA",)}
    assert [column.num_missing for column in profile.columns] == [1, 0]
    assert find_column_profile(profile, "b").value_counts == (("NA", 1), ("blue", 1), ("red", 1))


def test_few_values_of_another_type_are_invalid_and_many_make_the_column_text(home: Path, tmp_path: Path) -> None:
    numbers = [str(number) for number in range(2000)]
    lines = "".join(f"{cell},1\n" for cell in [*numbers, "1xx19"])
    number_column = find_column_profile(profile_csv(f"a,b\n{lines}", tmp_path), "a")
    assert (number_column.logical_type, number_column.num_invalid) == ("integer", 1)
    assert (number_column.minimum, number_column.maximum, number_column.is_unique) == (0, 1999, False)
    lines = "".join(f"{cell},1\n" for cell in [*numbers, *["1xx19"] * 19])
    text_column = find_column_profile(profile_csv(f"a,b\n{lines}", tmp_path), "a")
    assert (text_column.logical_type, text_column.num_invalid) == ("string", 0)


def test_a_column_of_integers_with_one_fraction_has_the_type_number(home: Path, tmp_path: Path) -> None:
    cells = [*map(str, range(3000)), "-0.5"]
    column = find_column_profile(profile_csv("a,b\n" + "".join(f"{cell},1\n" for cell in cells), tmp_path), "a")
    assert (column.logical_type, column.num_invalid, column.minimum) == ("number", 0, -0.5)


def test_decimal_commas_are_detected(home: Path, tmp_path: Path) -> None:
    profile = profile_csv("a;b\n" + "1,5;x\n" * 20, tmp_path, delimiter=";")
    assert find_column_profile(profile, "a").minimum == 1.5
    mixed = profile_csv("a;b\n" + "1,5;x\n" * 95 + "n/k;x\n" * 5, tmp_path, delimiter=";")
    assert find_column_profile(mixed, "a").has_decimal_commas
    assert not find_column_profile(profile, "b").has_decimal_commas


@given(
    cells=st.lists(
        st.sampled_from(["1", "2.5", "?", "", "red", "2020-01-01", "007", "1/2/2020", "13/2/2020 10:00"])
        | st.text(max_size=3)
    ),
    cuts=CUTS,
)
def test_statistics_of_texts_do_not_depend_on_the_batches(cells: list[str], cuts: list[int]) -> None:
    column = pa.array([cell or None for cell in cells], pa.string())
    one_batch, many_batches = TextColumnProfiler(len(cells)), TextColumnProfiler(len(cells))
    one_batch.add(column)
    edges = [0, *sorted(min(edge, len(cells)) for edge in cuts), len(cells)]
    for start, stop in pairwise(edges):
        many_batches.add(column.slice(start, stop - start))
    formats, more_formats = one_batch.candidate_formats(), many_batches.candidate_formats()
    assert [(item.date_format.pattern, item.notes) for item in formats] == [
        (item.date_format.pattern, item.notes) for item in more_formats
    ]
    counter = FormatCounter(formats[0]) if formats else None
    if counter is not None:
        counter.add(column)
    expected = one_batch.statistics(is_label=False, date_format=counter)
    statistics = many_batches.statistics(is_label=False, date_format=counter)
    # `may_be_unique` is only a hint: where it matters, DuckDB counts the values of the whole column.
    assert expected._replace(may_be_unique=True) == statistics._replace(may_be_unique=True)
    assert not expected.may_be_unique or statistics.may_be_unique


@given(values=st.lists(st.none() | st.floats(width=32) | st.just(7.0)), cuts=CUTS)
def test_statistics_of_numbers_do_not_depend_on_the_batches(values: list[float | None], cuts: list[int]) -> None:
    column = pa.array(values, pa.float64())
    edges = [0, *sorted(min(edge, len(values)) for edge in cuts), len(values)]
    profiler = TypedColumnProfiler("number")
    for start, stop in pairwise(edges):
        profiler.add(column.slice(start, stop - start))
    statistics = profiler.statistics(is_label=False, date_format=None)
    finite = [value for value in values if value is not None and np.isfinite(value)]
    num_nan = sum(value is not None and np.isnan(value) for value in values)
    assert (statistics.num_missing, statistics.missing) == (values.count(None) + num_nan, ("NaN",) if num_nan else ())
    assert statistics.num_invalid == len(values) - len(finite) - statistics.num_missing
    assert (statistics.minimum, statistics.maximum) == (min(finite, default=None), max(finite, default=None))


def test_typed_columns_arrays_and_uniqueness_are_profiled(home: Path, tmp_path: Path) -> None:
    num = 3000
    table = pa.table(
        {
            "key": [f"k{number}" for number in range(num)],
            "twice": [f"k{number // 2}" for number in range(num)],
            "ok": [number % 2 == 0 for number in range(num)],
            "pixels": pa.array([[number % 256] * 16 for number in range(num)], pa.list_(pa.uint8())),
            "nothing": pa.nulls(num),
        }
    )
    profile = profile_table(table, tmp_path)
    assert [column.logical_type for column in profile.columns] == ["string", "string", "boolean", "array"]
    assert [column.is_unique for column in profile.columns] == [True, False, False, False]
    assert (find_column_profile(profile, "twice").num_distinct, find_column_profile(profile, "twice").value_counts) == (
        num // 2,
        (*((f"k{number}", 2) for number in sorted(range(num // 2), key=str)),),
    )
    pixels = find_column_profile(profile, "pixels")
    assert (pixels.element_type, pixels.physical_type, pixels.minimum, pixels.maximum, pixels.length_counts) == (
        *("integer", "uint8", 0, 255),
        ((16, num),),
    )
    assert profile.left_out == {"nothing": "it has no values"}
    assert count_distinct_rows(tmp_path, ["twice", "ok"]) == num


def test_statistics_of_names_that_differ_in_case_are_those_of_the_column(home: Path, tmp_path: Path) -> None:
    profile_table(pa.table({"a": [1.0, 2.0, 3.0], "A": [0.0, 0.0, 9.0]}), tmp_path)
    assert standard_deviation(tmp_path, "a") == pytest.approx(np.std([1, 2, 3]))
    assert standard_deviation(tmp_path, "A") == pytest.approx(np.std([0, 0, 9]))
    assert (count_distinct_rows(tmp_path, ["A"]), count_distinct_rows(tmp_path, ["a"])) == (2, 3)


def test_a_column_that_the_user_drops_is_not_profiled(home: Path, tmp_path: Path) -> None:
    profile = profile_csv("a,b,c\n1,2,3\n", tmp_path, drop=["b"])
    assert ([column.name for column in profile.columns], profile.left_out) == (["a", "c"], {})


def test_columns_of_unsupported_types_are_left_out_with_the_reason(home: Path, tmp_path: Path) -> None:
    table = pa.table({"place": [{"x": 1, "y": 2}], "raw": [b"x"], "days": [[dt.date(2021, 1, 1)]], "label": [1]})
    profile = profile_table(table, tmp_path)
    assert [column.name for column in profile.columns] == ["label"]
    assert {name: reason.split(":")[0].split(",")[0] for name, reason in profile.left_out.items()} == {
        "place": "its values are objects with the fields x",
        "raw": "it is of type binary",
        "days": "its arrays have elements of type date32[day]",
    }
    with pytest.raises(DataUnfit, match="column place cannot be the label: its values are objects"):
        profile_source(DataSource(source=str(tmp_path / "rows.parquet")), tmp_path, label="place")


DIALECTS = [
    ("a;b\n1;2\n3;4\n", "label", {"delimiter": ";"}, ("a", "b")),
    ("a\tb\n1\t2\n", "label", {"delimiter": "\t"}, ("a", "b")),
    ("1,2\n3,4\n", "label", {"delimiter": ",", "header": False, "columns": ["column_1", "column_2"]}, None),
    ("red,blue\nred,green\n", "label", {"header": False}, ("column_1", "column_2")),
    ("color,label\nred,green\n", "label", {}, ("color", "label")),
    ('"a,b","label"\n"1,2","x"\n', "label", {"delimiter": ","}, ("a,b", "label")),
    (",a,a\n1,2,3\n", "a", {"skip_lines": 1, "columns": ["column_1", "a", "a_2"]}, None),
    ("a;b;label\n" + "1,5;-0,25;x\n0,5;2,75;y\n" * 40, "label", {"delimiter": ";"}, ("a", "b", "label")),
    ("t,label\n" + "'Smith, J 0',x\n'Smith, J 1',y\n" * 40, "label", {"quote": "'"}, ("t", "label")),
    ("a;b;label\n" + "1;2;x\n" * 40 + "a;broken;line;more\n", "label", {"delimiter": ";"}, ("a", "b", "label")),
    ("a:b:label\n" + "1:2:x\n" * 40, "label", {"delimiter": ":"}, ("a", "b", "label")),
    ("a b label\n" + "1 2 x\n" * 40, "label", {"delimiter": " "}, ("a", "b", "label")),
]


@pytest.mark.parametrize(("text", "label", "options", "names"), DIALECTS)
def test_a_dialect_is_inferred(
    text: str, label: str, options: dict[str, object], names: tuple[str, ...] | None, home: Path, tmp_path: Path
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text, encoding="utf-8")
    dialect = infer_dialect(locations.find_files(DataSource(source=str(path)), str(path)), label)
    assert options.items() <= dialect.options.items()
    assert names is None or dialect.names == names


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        ("a,b\nä,1\n".encode(), "utf-8"),
        ("a,b\nä,1\n".encode("utf-8-sig"), "utf-8"),
        ("a,b\nä,1\n".encode("cp1252"), "cp1252"),
        ("a,b\nä,1\n".encode("utf-16"), "utf-16"),
        (b"a,b\n" + "ä,1\n".encode() * 50 + b"\xe4,1\n", "utf-8"),
        (b"a,b\n\x81\xe4,1\n", "latin-1"),
    ],
)
def test_an_encoding_is_inferred(content: bytes, encoding: str, home: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(content)
    dialect = infer_dialect(locations.find_files(DataSource(source=str(path)), str(path)), "b")
    assert (dialect.options["encoding"], dialect.names) == (encoding, ("a", "b"))


@pytest.mark.parametrize(
    ("name", "content", "format"),
    [
        ("rows.data", b"1,2\n3,4\n", "csv"),
        ("rows.txt", b"1,2\n3,4\n", "csv"),
        ("rows.json", b'\n{"a": 1}\n{"a": 2}\n', "jsonl"),
        ("rows.json", b'[\n  {"a": 1},\n  {"a": 2}\n]\n', "json"),
        ("rows", b"PAR1....", "parquet"),
        ("train-images-idx3-ubyte", b"\0\0\x08\x03" + b"\0\0\0\x01" * 3 + b"\x07", "idx"),
    ],
)
def test_a_format_is_detected_by_the_first_bytes(name: str, content: bytes, format: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert detect_format(str(tmp_path / name)) == format


@pytest.mark.parametrize("content", [b"", b"\x13\x00\xff\x00rest", b'{\n"a": [1, 2]}\n', b"PK\x03\x04nothing"])
def test_an_unknown_format_is_reported(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "rows").write_bytes(content)
    with pytest.raises(DataMissing, match="rows"):
        detect_format(str(tmp_path / "rows"))


@given(st.lists(st.text(), unique=True, max_size=8))
def test_only_an_empty_name_is_replaced(names: list[str]) -> None:
    new_names = contract_names(names)
    assert [*new_names] == names
    assert all(new_name == name for name, new_name in new_names.items() if name)
    assert all(new_names.values())
    assert len(set(new_names.values())) == len(names)


def test_a_similar_name_is_suggested() -> None:
    names = contract_names(["hours per week", "Income", " spaced "])
    assert find_column("hours per week", names, "--label") == "hours per week"
    assert find_column("spaced", names, "--label") == " spaced "
    with pytest.raises(DataMissing, match=r"did you mean 'hours per week'\?"):
        find_column("hours_per_week", names, "--label")
    with pytest.raises(DataMissing, match=r"did you mean 'Income'\?"):
        find_column("incme", names, "--label")


@pytest.mark.parametrize("names", [["class", "Class"], ["Class", "class"], [" class", "class", "Class"]])
def test_the_column_of_exactly_that_name_is_found(names: list[str]) -> None:
    assert find_column("class", contract_names(names), "--label") == "class"
    assert find_column("Class", contract_names(names), "--label") == "Class"


@given(st.lists(st.text().map(str.strip).filter(bool), min_size=1, max_size=5))
def test_names_are_read_back_from_an_option(names: list[str]) -> None:
    assert parse_names(format_names(names)) == tuple(names)


@pytest.mark.parametrize(
    "name", ["email", "PhoneNumber", "phone_number", "name", "first name", "Address1", "birth_date"]
)
def test_names_of_personal_data_are_recognized(name: str) -> None:
    assert sounds_personal(name)


@pytest.mark.parametrize("name", ["product_name", "hours", "class", "phonetic", "township"])
def test_other_names_are_not_taken_for_personal_data(name: str) -> None:
    assert not sounds_personal(name)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=10,
)


@given(key=st.text(max_size=200), value=PLAIN)
def test_written_yaml_reads_back_unchanged(key: str, value: object) -> None:
    inner = CommentedMap({key: inline(value)})
    add_comment(inner, key, str(value), 2)
    document = CommentedMap(outer=inner, list=CommentedSeq([inline(value)]), after=1)
    add_comment(document, "outer", key)
    assert yaml.safe_load(dump_yaml(document)) == {"outer": {key: value}, "list": [value], "after": 1}
