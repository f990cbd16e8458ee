"""Rows are ingested as the source has them, and missing data is reported."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bloomery.data_contracts.errors import DataMissing, RecipeInvalid
from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.data_contracts.records.records import RawRows
from bloomery.tasks.ingest.stage import ingest, locate_source


def test_the_bundled_digits_are_ingested_completely(home: Path) -> None:
    rows = ingest.task.fn(locate_source(DataSource(source="sklearn:digits")))
    table = pq.read_table(home / rows.uri)
    assert (rows.num_rows, table.num_rows) == (1797, 1797)
    assert table["image"][0].as_py()[:6] == [0, 0, 5, 13, 9, 1]
    assert table["label"].to_pylist()[:10] == list(range(10))


def test_a_folder_of_files_is_read_as_one_table(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(3):
        pq.write_table(pa.table({"id": [number]}), folder / f"{number}.parquet")
    rows = ingest.task.fn(locate_source(DataSource(source=str(folder))))
    assert pq.read_table(home / rows.uri)["id"].to_pylist() == [0, 1, 2]


def test_the_digest_of_a_source_depends_on_its_content(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"id": [1]}), path)
    first = locate_source(DataSource(source=str(path))).digest
    pq.write_table(pa.table({"id": [2]}), path)
    assert locate_source(DataSource(source=str(path))).digest != first


@pytest.mark.parametrize("source", ["nowhere.parquet", "sklearn:unknown"])
def test_missing_data_is_reported(source: str, tmp_path: Path) -> None:
    with pytest.raises(DataMissing) as caught:
        locate_source(DataSource(source=source if ":" in source else str(tmp_path / source)))
    assert source.removeprefix("sklearn:") in caught.value.found
    assert caught.value.exit_code == 2


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match="in the folder"):
        locate_source(DataSource(source=str(tmp_path)))


def test_a_truncated_file_is_reported(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"id": list(range(1000))}), path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataMissing, match="cannot be read as Parquet"):
        ingest.task.fn(locate_source(DataSource(source=str(path))))


ADULT = (
    *("age", "workclass", "fnlwgt", "education", "education_num", "marital_status", "occupation", "relationship"),
    *("race", "sex", "capital_gain", "capital_loss", "hours_per_week", "native_country", "income"),
)
PENDIGITS = (*(f"{axis}{point}" for point in range(8) for axis in "xy"), "label")


def ingest_table(home: Path, data: DataSource) -> tuple[RawRows, pa.Table]:
    record = ingest(locate_source(data))
    assert record.num_malformed == 0
    return record, pq.read_table(home / record.uri)


def test_adult_is_ingested_from_two_files_with_leading_spaces_and_question_marks(home: Path, datasets: Path) -> None:
    sources = [{"source": str(datasets / "adult" / f"adult-{part}.csv"), "part": part} for part in ("train", "test")]
    data = DataSource.model_validate(
        {"sources": sources, "columns": ADULT, "strip": True, "missing": ["?"], "row_id": "id"}
    )
    record, table = ingest_table(home, data)
    assert record.num_rows == 32_561 + 16_281
    assert table["workclass"].null_count == 1_836 + 963
    assert table["part"].to_pylist().count("test") == 16_281
    assert set(table["income"].to_pylist()) == {"<=50K", ">50K", "<=50K.", ">50K."}
    assert table["id"][-1].as_py() == "48841"


def test_taxi_files_are_ingested_month_by_month(home: Path, datasets: Path) -> None:
    data = DataSource(source=str(datasets / "nyc_taxi" / "*.csv"), path_pattern=r"(?P<month>\d{4}-\d{2})\.csv$")
    record, table = ingest_table(home, data)
    assert record.num_rows == 120_000
    assert table["congestion_surcharge"].slice(0, 20_000).null_count == 20_000
    assert table["month"].to_pylist()[::10_000][:3] == ["2018-01", "2018-07", "2019-01"]


@pytest.mark.slow
def test_spoken_digits_are_ingested_from_a_zip(home: Path, datasets: Path) -> None:
    pattern = r"(?P<label>\d)_(?P<speaker>[a-z]+)_(?P<index>\d+)\.wav"
    data = DataSource(
        source=str(datasets / "fsdd" / "fsdd.zip"), format="audio", path_pattern=pattern, sample_rate=8000
    )
    record, table = ingest_table(home, data)
    assert record.num_rows == 3_000
    assert set(table["label"].to_pylist()) == set("0123456789")
    lengths = [len(wave) for wave in table["wave"].to_pylist()]
    assert (min(lengths) / 8000, max(lengths) / 8000) == pytest.approx((0.14, 2.28), abs=0.01)


@pytest.mark.slow
def test_mnist_is_ingested_from_four_files(home: Path, datasets: Path) -> None:
    folder = datasets / "mnist"
    names = {"train": "train", "t10k": "test"}
    sources = [
        {
            "source": str(folder / f"{name}-images-idx3-ubyte.gz"),
            "labels": str(folder / f"{name}-labels-idx1-ubyte.gz"),
            "part": part,
        }
        for name, part in names.items()
    ]
    record, table = ingest_table(home, DataSource.model_validate({"sources": sources, "format": "idx"}))
    assert record.num_rows == 70_000
    assert table["label"].slice(60_000).to_pylist().count(0) == 980
    assert len(table["image"][0]) == 784


def test_pen_digits_are_ingested_without_padding(home: Path, datasets: Path) -> None:
    source = str(datasets / "pendigits" / "pendigits.tra")
    record, table = ingest_table(home, DataSource(source=source, format="csv", columns=PENDIGITS, strip=True))
    assert record.num_rows == 7_494
    assert (
        table.slice(0, 1).to_pylist()[0] | {"x0": "47", "y0": "100", "label": "8"} == table.slice(0, 1).to_pylist()[0]
    )


def test_a_configured_missing_marker_becomes_null(home: Path, datasets: Path) -> None:
    source = str(datasets / "beijing_pm25" / "pollution.csv")
    record, table = ingest_table(home, DataSource(source=source, missing=("NA",), rename={"pm2.5": "pm25"}))
    assert record.num_rows == 43_824
    assert table["pm25"].null_count == 2_067


def test_cached_rows_are_reused_until_reader_options_change(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a\n 1\n")
    default, stripped = DataSource(source=str(path)), DataSource(source=str(path), strip=True)
    first = ingest(locate_source(default))
    assert ingest.lookup(locate_source(default)) == first
    assert ingest.lookup(locate_source(stripped)) is None
    assert pq.read_table(home / ingest(locate_source(stripped)).uri)["a"].to_pylist() == ["1"]


def test_a_source_without_rows_keeps_its_columns(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a,b\n\n")
    record = ingest(locate_source(DataSource(source=str(path))))
    assert record.num_rows == 0
    assert pq.read_schema(home / record.uri).names == ["a", "b"]


def test_texts_are_replaced_as_configured(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("A,b\nno.,1\nno,2\n,3\nyes.,4\n")
    options = {"rename": {"A": "a"}, "replace": {"a": {"no.": "no", "yes.": "yes", "no": "never"}}}
    _, table = ingest_table(home, DataSource.model_validate({"source": str(path), **options}))
    assert table["a"].to_pylist() == ["no", "never", None, "yes"]
    assert table["b"].to_pylist() == ["1", "2", "3", "4"]
    invalid = DataSource.model_validate({"source": str(path), "replace": {"a": {"no.": "no"}}})
    with pytest.raises(RecipeInvalid, match="no text column a"):
        ingest(locate_source(invalid))


def test_files_of_one_folder_are_assigned_to_splits_by_name(home: Path, tmp_path: Path) -> None:
    for name in ("a_0", "a_1", "b_0"):
        (tmp_path / f"{name}.csv").write_text(f"name\n{name}\n")
    folder = str(tmp_path)
    sources = [
        {"source": folder, "files": "_0", "part": "test"},
        {"source": folder, "files": "_[1-9]", "part": "train"},
    ]
    data = DataSource.model_validate({"sources": sources, "format": "csv"})
    _, table = ingest_table(home, data)
    assert table.to_pylist() == [
        {"name": "a_0", "part": "test"},
        {"name": "b_0", "part": "test"},
        {"name": "a_1", "part": "train"},
    ]
    sources[1]["files"] = "_[2-9]"
    unmatched = DataSource.model_validate({"sources": sources, "format": "csv"})
    assert locate_source(unmatched).digest != locate_source(data).digest
    with pytest.raises(DataMissing, match="no file has '_\\[2-9\\]' in its path"):
        ingest(locate_source(unmatched))
