"""Measures drafts that read text beside columns, against the same network without the text, and TF-IDF with trees.

    BLOOMERY_DATA=… .venv/bin/python benchmarks/training/mixed.py [--seeds 0 1 2] [--rows 4000] [--checkpoint REF]
        [--tables movies restaurants] [--movies movies.db]

Tables: `movies` are 17,472 films of `bokeh_sampledata` (PyPI; its file movies.db), whose genre is predicted from title,
year, length, language and country. `restaurants` are the 4,672 descriptions of E2E's development file (Novikova et al.
2017, below BLOOMERY_DATA), whose rating is predicted from text and attributes.

`bloomery init` drafts the recipe, and nothing of it is edited; `--checkpoint` is passed to it. All models have the same
splits. TF-IDF: words and pairs in at least 2 training rows, sublinear, 64 singular vectors; beside them numbers as they
are and categories by frequency; scikit-learn's histogram gradient boosting with its default settings. Nobody tunes it.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import sqlite3
import statistics
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from recipes import prepare_rows, train_and_evaluate

from bloomery.data_contracts.records.records import Dataset
from bloomery.flows.cli.commands.init import write_drafts
from bloomery.flows.recipe.recipe import Recipe, read_recipe
from bloomery.models.features.input_config import TextInput
from bloomery.models.networks.config import Mlp
from bloomery.models.training.config import Augment
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.scaffolding.planning.draft_planning import ColumnRoles
from bloomery.tasks.scaffolding.source_options.reader_options import UserOptions

MIN_GENRE_ROWS = 300
Rows = list[dict[str, Any]]


def read_movies(path: Path) -> Rows:
    """Films with a frequent first genre."""
    query = "SELECT Title, Year, Runtime, Language, Country, Genre FROM omdb WHERE Genre <> '' ORDER BY ID"
    with sqlite3.connect(path) as connection:
        films = connection.execute(query).fetchall()
    genres = Counter(film[-1].split(",")[0] for film in films)
    names = ("title", "year", "length", "language", "country", "label")
    rows = [dict(zip(names, (*film[:-1], film[-1].split(",")[0]), strict=True)) for film in films]
    return [row for row in rows if genres[row["label"]] >= MIN_GENRE_ROWS]


def read_restaurants(path: Path) -> Rows:
    """Descriptions with a customer rating, and the attributes that they describe."""
    with path.open(newline="", encoding="utf-8") as file:
        pairs = list(csv.DictReader(file))
    rows = []
    for pair in pairs:
        facts = dict(re.findall(r"([\w ]+)\[([^\]]*)\]", pair["mr"]))
        facts = {name.strip(): value for name, value in facts.items()}
        names = ("eatType", "food", "priceRange", "area", "familyFriendly")
        if "customer rating" in facts:
            values = {name: facts.get(name, "") for name in names}
            rows.append({"description": pair["ref"], **values, "label": facts["customer rating"]})
    return rows


def write_table(rows: Rows, num_rows: int, folder: Path) -> Path:
    """Writes a random sample of the rows, with an id."""
    order = np.random.default_rng(0).permutation(len(rows))[:num_rows]
    path = folder / "rows.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["id", *rows[0]])
        writer.writeheader()
        writer.writerows({"id": f"r{number:06d}", **rows[index]} for number, index in enumerate(order))
    return path


def without_text(recipe: Recipe) -> Recipe:
    """The recipe without texts: its network of the table alone, trained as the table is in the fused network."""
    inputs = tuple(source for source in recipe.features.inputs if not isinstance(source, TextInput))
    features = recipe.features.model_copy(update={"inputs": inputs})
    training = recipe.training.parts[0].model_copy(update={"freeze": (), "augment": Augment()})
    return recipe.model_copy(update={"features": features, "model": Mlp(kind="mlp"), "training": training})


def fit_trees(dataset: Dataset, path: Path, text: str, seed: int) -> float:
    """The accuracy of boosted trees on columns and TF-IDF, on the test split."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.feature_extraction.text import TfidfVectorizer

    with path.open(newline="", encoding="utf-8") as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    splits = [
        [rows[key] for key in pq.read_table(settings().path(part.uri), columns=[dataset.key])[dataset.key].to_pylist()]
        for part in (dataset.train, dataset.val, dataset.test)
    ]
    train, test = [*splits[0], *splits[1]], splits[2]
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    words = vectorizer.fit_transform(row[text] for row in train)
    reduction = TruncatedSVD(min(64, words.shape[1] - 1), random_state=seed).fit(words)
    names = [name for name in train[0] if name not in ("id", "label", text)]
    frequencies = {name: Counter(row[name] for row in train) for name in names}

    def encode(part: Rows) -> np.ndarray:
        columns = [[_to_number(row[name], frequencies[name]) for row in part] for name in names]
        vectors = reduction.transform(vectorizer.transform([row[text] for row in part]))
        return np.column_stack([np.array(columns).T, vectors])

    trees = HistGradientBoostingClassifier(random_state=seed).fit(encode(train), [row["label"] for row in train])
    return float(trees.score(encode(test), [row["label"] for row in test]))


def _to_number(value: str, frequencies: Counter[str]) -> float:
    try:
        return float(value)
    except ValueError:
        return float(frequencies[value]) if value else float("nan")


def measure(name: str, rows: Rows, arguments: argparse.Namespace, folder: Path) -> None:
    """Prints a line for each model and seed, and the means."""
    path = write_table(rows, arguments.rows, folder)
    roles = ColumnRoles("label", key="id", checkpoint=arguments.checkpoint)
    draft = write_drafts(name, [str(path)], roles, UserOptions(), output=folder)
    recipe = read_recipe(str(draft.recipe))
    text = next(source.column for source in recipe.features.inputs if isinstance(source, TextInput))
    scores: dict[str, list[float]] = {"fused": [], "without text": [], "TF-IDF and trees": []}
    for seed in arguments.seeds:
        for title, version in (("fused", recipe), ("without text", without_text(recipe))):
            result = train_and_evaluate(version, seed, arguments.threads)
            scores[title].append(result.test_metrics["accuracy"])
            print(f"{name}, seed {seed}, {title}: {scores[title][-1]:.4f}, {result.wall_s:.0f} s", flush=True)
        scores["TF-IDF and trees"].append(fit_trees(prepare_rows(recipe), path, text, seed))
        print(f"{name}, seed {seed}, TF-IDF and trees: {scores['TF-IDF and trees'][-1]:.4f}", flush=True)
    for title, values in scores.items():
        spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
        print(f"| {name} | {title} | {statistics.mean(values):.4f}{spread} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", type=int, default=4_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--checkpoint")
    parser.add_argument("--tables", nargs="+", default=["movies", "restaurants"])
    parser.add_argument("--movies", type=Path, default=Path("movies.db"))
    arguments = parser.parse_args()
    readers = {
        "movies": lambda: read_movies(arguments.movies),
        "restaurants": lambda: read_restaurants(Path(os.environ["BLOOMERY_DATA"]) / "e2e" / "devset.csv"),
    }
    for name in arguments.tables:
        with tempfile.TemporaryDirectory() as folder:
            measure(name, readers[name](), arguments, Path(folder))


if __name__ == "__main__":
    main()
