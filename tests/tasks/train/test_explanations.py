"""Explanations of predictions: plots and pages of single rows, and the importance of features."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.features.config import Features
from bloomery.models.features.encoder import STATISTICS, Encoder, encode, encode_labels, fit, partial_statistics
from bloomery.models.features.input_config import CategoryInput, ImageInput, NumberInput, SeriesInput, TextInput
from bloomery.models.networks.blueprint import Blueprint, build_network
from bloomery.models.networks.config import Cnn, Fused, Mlp, Rnn, Transformer
from bloomery.models.training.config import Explain
from bloomery.models.training.data.batches import Examples
from bloomery.tasks.tracking import mlflow_runs
from bloomery.tasks.train.explanation_plots import plot_importance
from bloomery.tasks.train.explanations import (
    FOLDER,
    ExplanationJob,
    log_explanations,
    select_varied_rows,
    write_explanations,
)
from tests.mixed_rows import NUMBER, PHOTO, TEXT, make_features, make_table
from tests.mixed_rows import fit_encoder as fit_mixed_encoder

NUM = 24
TEXTS = ["buy <b>now</b> and save", "your invoice is here", "gemütlich 今日は", "see you at noon"]


def inputs_of(kind: str) -> tuple[Any, dict[str, list[Any]], Any]:
    """Inputs of a recipe, columns for them, and the config of a network that reads them."""
    random = np.random.default_rng(0)
    match kind:
        case "flat":
            columns = {"age": random.normal(size=NUM).tolist(), "ta$x_{": random.choice(["a", "b"], NUM).tolist()}
            numbers = NumberInput(kind="number", columns=("age",))
            return (numbers, CategoryInput(kind="category", columns=("ta$x_{",))), columns, Mlp(kind="mlp", hidden=(8,))
        case "image":
            images = ImageInput(kind="image", column="image", shape=(3, 6, 5))
            return (
                (images,),
                {"image": random.normal(size=(NUM, 90)).tolist()},
                Cnn(kind="cnn", channels=(4,), hidden=8),
            )
        case "series":
            columns = {name: random.normal(size=(NUM, 7)).tolist() for name in ("warmth", "wind")}
            series = SeriesInput(kind="series", columns=("warmth", "wind"), time="at", length=7)
            return (series,), {**columns, "at": list(range(NUM))}, Rnn(kind="rnn", hidden=8)
        case _:
            text = TextInput(kind="text", column="text", length=24, vocabulary_size=270)
            network = Transformer(kind="transformer", width=8, num_layers=1, num_heads=2)
            return (text,), {"text": [TEXTS[row % 4] for row in range(NUM)]}, network


def make_example(kind: str) -> tuple[torch.nn.Module, Layout, Encoder, Examples, pa.Table]:
    inputs, columns, config = inputs_of(kind)
    table = pa.table({"id": list(range(NUM)), **columns, "label": ["no", "yes"] * (NUM // 2)})
    features = Features(key="id", label="label", inputs=inputs)
    encoder = fit(
        features, [batch[STATISTICS][0].as_py() for batch in partial_statistics(features, table.to_batches())]
    )
    layout = encoder.layout
    torch.manual_seed(0)
    network = build_network(Blueprint(config=config, layout=layout, num_outputs=2)).eval()
    y = torch.from_numpy(encode_labels(encoder, table["label"]).to_numpy().copy())
    examples = Examples(torch.from_numpy(encode(encoder, table)), y, table["id"].to_numpy())
    return network, layout, encoder, examples, table


@pytest.mark.parametrize("kind", ["flat", "image", "series", "text"])
def test_explanations_show_single_rows_and_the_importance_of_features(tmp_path: Path, kind: str) -> None:
    network, layout, encoder, examples, table = make_example(kind)
    state = torch.get_rng_state()
    options = Explain(rows=3, sample=10)
    read_raw_rows = lambda keys: table.take(keys.tolist())  # noqa: E731
    job = ExplanationJob(network, layout, encoder, examples, options, read_raw_rows)
    gap = write_explanations(tmp_path, job)
    assert gap < 0.1
    assert torch.equal(torch.get_rng_state(), state)
    file_names = {"rows.html"} if kind == "text" else {"rows.png", "importance.png"}
    assert {path.name for path in tmp_path.iterdir()} == file_names | {"weights.json"}
    document = json.loads((tmp_path / "weights.json").read_text(encoding="utf-8"))
    assert document["rows"] == 10
    assert [entry["row"].split(",")[0] for entry in document["shown"]] == ["truth no", "truth yes", "truth no"]
    names = {"flat": ["age", "ta$x_{"], "series": ["warmth", "wind"], "image": []}
    if kind in names:
        assert list(document["mean_weights"]) == names[kind]


def test_titles_of_a_regression_are_in_the_units_of_the_label(tmp_path: Path) -> None:
    table = pa.table(
        {"id": range(NUM), "age": [row % 7 + 0.5 for row in range(NUM)], "pay": [100.0 * row for row in range(NUM)]}
    )
    features = Features(
        key="id", label="pay", task="regression", inputs=(NumberInput(kind="number", columns=("age",)),)
    )
    encoder = fit(
        features, [batch[STATISTICS][0].as_py() for batch in partial_statistics(features, table.to_batches())]
    )
    config = Mlp(kind="mlp", hidden=(4,))
    network = build_network(Blueprint(config=config, layout=encoder.layout, task="regression", num_outputs=1)).eval()
    y = torch.from_numpy(encode_labels(encoder, table["pay"]).to_numpy().copy())
    examples = Examples(torch.from_numpy(encode(encoder, table)), y, table["id"].to_numpy())
    job = ExplanationJob(network, encoder.layout, encoder, examples, Explain(rows=2, sample=NUM))
    write_explanations(tmp_path, job)
    document = json.loads((tmp_path / "weights.json").read_text(encoding="utf-8"))
    assert [entry["key"] for entry in document["shown"]] == ["0", str(NUM - 1)]
    assert document["shown"][1]["row"].startswith("truth 2300, prediction ")


def test_the_run_has_the_plots_and_the_completeness_gap(home: Path, tmp_path: Path) -> None:
    network, layout, encoder, examples, _ = make_example("flat")
    with mlflow_runs.logged_run("explained", "train", "key") as run_id:
        job = ExplanationJob(network, layout, encoder, examples, Explain(rows=2, sample=4))
        log_explanations(run_id, tmp_path / "explained", job)
    logged = {Path(artifact.path).name for artifact in mlflow_runs.client().list_artifacts(run_id, FOLDER)}
    assert logged == {path.name for path in (tmp_path / "explained").iterdir()} != set()
    assert mlflow_runs.client().get_run(run_id).data.metrics["explanation_gap"] < 0.1


def test_a_text_page_shows_complete_texts_escaped(tmp_path: Path) -> None:
    network, layout, encoder, examples, _ = make_example("text")
    write_explanations(tmp_path, ExplanationJob(network, layout, encoder, examples, Explain(rows=4, sample=NUM)))
    page = (tmp_path / "rows.html").read_text(encoding="utf-8")
    assert "<b>" not in page
    page_text = html.unescape("".join(part.rpartition(">")[2] for part in page.split("</span>")))
    assert [text[:12] in page_text for text in TEXTS[:2]] == [True, True]


def test_rows_are_selected_class_by_class_and_numbers_from_low_to_high() -> None:
    assert select_varied_rows(np.array([1, 1, 1, 0, 2]), 4).tolist() == [3, 0, 4, 1]
    assert select_varied_rows(np.array([0.5, -1.0, 3.0, 2.0], np.float32), 3).tolist() == [1, 0, 2]
    assert len(select_varied_rows(np.array([1, 1]), 8)) == 2


def test_the_importance_map_of_images_has_their_shape(tmp_path: Path):
    from matplotlib.image import imread

    sizes = {}
    for name, shape in (("square", (28, 28)), ("wide", (40, 200))):
        plot_importance(np.ones(shape), (), 1, tmp_path / f"{name}.png")
        sizes[name] = imread(tmp_path / f"{name}.png").shape[:2]
    assert 0.7 < sizes["square"][0] / sizes["square"][1] < 1
    assert sizes["wide"][0] / sizes["wide"][1] < 0.3


def test_each_part_of_mixed_rows_has_plots_of_its_own(tmp_path: Path):
    sources = [NUMBER, TEXT, {**PHOTO, "missing": "absent"}]
    table = make_table(NUM, frozenset({("photo", 3)}))
    encoder = fit_mixed_encoder(make_features(*sources), table)
    x = torch.from_numpy(encode(encoder, table))
    y = torch.arange(NUM)
    blueprint = Blueprint(config=Fused(kind="fused", width=8), layout=encoder.layout, num_outputs=len(encoder.classes))
    job = ExplanationJob(
        build_network(blueprint), encoder.layout, encoder, Examples(x, y, np.arange(NUM)), Explain(rows=2, sample=3)
    )
    gap = write_explanations(tmp_path, job)
    assert gap < 1e-3
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*") if path.is_file()} == {
        "importance.png",
        "weights.json",
        "0-table/rows.png",
        "0-table/importance.png",
        "1-note/rows.html",
        "2-photo/rows.png",
        "2-photo/importance.png",
    }
    weights = json.loads((tmp_path / "weights.json").read_text(encoding="utf-8"))
    assert set(weights["mean_weights"]) == {"size", "note", "photo"}
