"""Kinds of files: Stata's are drafted, those of other programs have an error that says how to convert them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bloomery.data_contracts.errors import DataMissing
from tests.flows.cli.commands.drafts import draft_recipe, input_kinds, validate_rows


def test_a_stata_file_is_drafted(home: Path, tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "age": [float(number % 70) if number % 9 else None for number in range(120)],
            "region": pd.Categorical([("north", "south", "west")[number % 3] for number in range(120)]),
            "vote": pd.Categorical([("no", "yes")[number % 7 % 2] for number in range(120)]),
        }
    )
    frame.to_stata(tmp_path / "survey.dta", write_index=False)
    recipe = draft_recipe(tmp_path, tmp_path / "survey.dta", "vote")
    assert recipe.data.kind == "stata"
    assert input_kinds(recipe) == {"age": "number", "region": "one_hot"}
    rows = validate_rows(recipe)
    assert (rows.num_rows, rows.num_quarantined) == (120, 0)


@pytest.mark.parametrize(
    ("name", "what", "remedy"),
    [
        ("rows.sav", "a file of SPSS", "CSV"),
        ("rows.sas7bdat", "a file of SAS", "read_sas"),
        ("rows.RData", "a file of R", "write.csv"),
        ("rows.pkl", "a pickle", "to_parquet"),
        ("rows.tar.gz", "a tar archive", "tar xf"),
        ("rows.csv.xz", "compressed with xz", "xz -d"),
    ],
)
def test_files_that_are_not_read_say_how_to_convert_them(
    name: str, what: str, remedy: str, home: Path, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(b"\x01\x02")
    with pytest.raises(DataMissing, match=what) as raised:
        draft_recipe(tmp_path, tmp_path / name, "label")
    assert remedy in raised.value.remedy


def test_many_unequal_classes_of_images_are_classes(home: Path, tmp_path: Path) -> None:
    labels = np.concatenate([np.arange(40).repeat(12), np.arange(10).repeat(7)])
    images = np.random.default_rng(0).integers(0, 255, (len(labels), 6, 6), np.uint8)
    np.savez(tmp_path / "letters.npz", x=images, y=labels)
    recipe = draft_recipe(tmp_path, tmp_path / "letters.npz", "y")
    assert recipe.features.task == "classification"
    assert recipe.contract.column("y") is not None
    np.savez(tmp_path / "ages.npz", x=images, age=np.arange(len(labels)) % 90)
    assert draft_recipe(tmp_path, tmp_path / "ages.npz", "age").features.task == "regression"


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-16"])
def test_wide_characters_are_read_without_a_byte_order_mark(encoding: str, home: Path, tmp_path: Path) -> None:
    lines = ["größe;stadt;y", *(f"{number};{('Köln', 'Zürich')[number % 2]};{number % 3 % 2}" for number in range(90))]
    (tmp_path / "rows.csv").write_bytes("\n".join(lines).encode(encoding))
    recipe = draft_recipe(tmp_path, tmp_path / "rows.csv", "y")
    assert recipe.data.encoding == encoding
    assert input_kinds(recipe) == {"stadt": "one_hot"}
    assert validate_rows(recipe).num_rows == 90
