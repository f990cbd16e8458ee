"""Model cards: their content comes from the records, and names from the data are escaped."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from markdown_it import MarkdownIt
from PIL import Image

from bloomery.data_contracts.records.records import Interval, Privacy, Release, ResourceUsage
from bloomery.data_contracts.records.scores import Score
from bloomery.models.evaluation.metrics import accuracy, proportion
from bloomery.models.features.config import Features
from bloomery.models.features.encoder import fit, partial_statistics
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.model_card import metrics
from bloomery.tasks.model_card.card import write_card
from bloomery.tasks.model_card.rendering import (
    Card,
    Picture,
    Section,
    Table,
    escape_markdown,
    render_card,
    shrink_picture,
)

HOSTILE = '<script>alert("x")</script>|`[a](javascript:b)`\n# c'


class ParsedPage(HTMLParser):
    """The text, the elements and the URLs of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.elements, self.urls = "", set[str](), list[str]()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.urls += [value or "" for name, value in attrs if name in ("src", "href", "action", "srcset")]

    def handle_data(self, data: str) -> None:
        self.text += data


def write_example_card(
    home: Path, release: Release, task: str, names: tuple[str, ...] = ("a", HOSTILE), **trained: Any
) -> Any:
    """Writes a card of made-up predictions for six rows to `home / "card"`, and returns its choice."""
    folder = home / "made"
    folder.mkdir(parents=True)
    choice = release.bento.choice
    keys = pa.array(range(6))
    if task == "classification":
        probabilities = np.array([[0.9, 0.1]] * 4 + [[0.2, 0.8]] * 2)
        truth = [names[position] for position in (0, 0, 0, 1, 1, 1)]
        predicted = [names[position] for position in probabilities.argmax(axis=1)]
        columns = {"truth": truth, "prediction": predicted, "probabilities": list(probabilities)}
    elif task == "multilabel":
        truth, predicted = ([[*names[:1]]] * 3 + [[]] * 3, [[*names[:1]]] * 4 + [[]] * 2)
        probabilities = np.array([[0.9, 0.01]] * 4 + [[0.02, 0.01]] * 2)
        sets = [pa.array(labels, pa.list_(pa.string())) for labels in (truth, predicted)]
        columns = {"truth": sets[0], "prediction": sets[1], "probabilities": list(probabilities)}
    else:
        columns = {"truth": [1.0, 2, 3, 4, 5, 6], "prediction": [1.0, 2, 3, 4, 5, 8]}
        number = {"kind": "number", "columns": ["x"], "scale": "none"}
        features = Features.model_validate({"key": "id", "label": "y", "task": "regression", "inputs": [number]})
        rows = pa.table({"id": keys, "x": [0.0] * 6, "y": columns["truth"]})
        summary = next(iter(partial_statistics(features, rows.to_batches())))["statistics"]
        encoder = fit(features, summary.to_pylist())
        (folder / "encoder.json").write_text(encoder.model_dump_json(by_alias=True))
    pq.write_table(pa.table({"id": keys, **columns}), folder / "predictions.parquet")
    Image.new("RGB", (2000, 900), "white").save(folder / "candidates.png")
    dataset = choice.candidates.trained.dataset.model_copy(
        update={
            "task": task,
            "classes": () if task == "regression" else names,
            "encoder_uri": "made/encoder.json",
            "test": choice.candidates.trained.dataset.test.model_copy(update={"num_rows": 6}),
        }
    )
    usage = ResourceUsage(seconds=7.0, cpu_seconds=5.0, joules=72_000.0, is_measured=False, used_gpu=False)
    update = {"dataset": dataset, "resource_usage": usage, "uri": "made/weights", **trained}
    score = accuracy(np.array([1, 1, 1, 0, 1, 1])) if task == "classification" else Interval(value=0.82, low=0, high=2)
    candidate = choice.candidate.model_copy(update={"predictions_uri": "made/predictions.parquet", "score": score})
    candidates = choice.candidates.model_copy(
        update={
            "trained": choice.candidates.trained.model_copy(update=update),
            "candidates": (candidate,),
            "resource_usage": usage.model_copy(update={"is_measured": True}),
        }
    )
    changed_choice = choice.model_copy(
        update={"candidate": candidate, "candidates": candidates, "plot_uri": "made/candidates.png"}
    )
    write_card(home / "card", "made:1", changed_choice, {"model": {"kind": "mlp"}, "data": {"obtain": "of a friend"}})
    return changed_choice


def test_a_card_of_sets_has_the_calibration_of_the_predicted_labels(home: Path, release: Release) -> None:
    choice = write_example_card(home, release, "multilabel", ("a", "b"), stated_score=Score(name="subset_accuracy"))
    card_metrics = metrics.compute_card_metrics(choice)
    assert card_metrics.calibration_error == pytest.approx(0.9 - 3 / 4)
    text = ParsedPage((home / "card" / "card.html").read_text()).text
    assert "Expected calibration error 0.1500 on the 4 labels that are predicted for the test split" in text


def test_a_card_of_a_classification_reports_the_measured_metrics(home: Path, release: Release) -> None:
    choice = write_example_card(home, release, "classification")
    card_metrics = metrics.compute_card_metrics(choice)
    assert [class_result.num_rows for class_result in card_metrics.classes] == [3, 3]
    assert [class_result.recall for class_result in card_metrics.classes] == [proportion(3, 3), proportion(2, 3)]
    assert [class_result.precision for class_result in card_metrics.classes] == [proportion(3, 4), proportion(2, 2)]
    assert card_metrics.calibration_error == pytest.approx(abs((4 * 0.9 - 3) / 6) + abs((2 * 0.8 - 2) / 6))
    text = ParsedPage((home / "card" / "card.html").read_text()).text
    for expected in (
        "100.0% (43.9–100.0)",  # recall of `a`
        "The test split has only 6 rows",
        "of a friend",
        "Tell which digit a person wrote",
        "Energy is estimated, not measured",
        "measured by the CPU's own counter",
        "0.02 kWh",
        "1,797 digits by 13 people",  # the contract's own words
        "CC BY 4.0",
        "Network kind mlp",
    ):
        assert expected in text
    assert {path.name for path in (home / "card").iterdir()} == {
        *("card.html", "card.md", "calibration.png", "candidates.png")
    }


def test_names_from_the_data_inject_nothing_into_either_page(home: Path, release: Release) -> None:
    write_example_card(home, release, "classification")
    page = ParsedPage((home / "card" / "card.html").read_text())
    assert HOSTILE in page.text
    assert not {"script", "iframe", "object", "link", "form", "a"} & page.elements
    assert page.urls
    assert all(address.startswith("data:image/png;base64,") for address in page.urls)
    markdown_page = ParsedPage(MarkdownIt().enable("table").render((home / "card" / "card.md").read_text()))
    assert " ".join(HOSTILE.split()) in markdown_page.text
    assert not {"script", "a", "code"} & markdown_page.elements
    assert markdown_page.urls == ["calibration.png", "candidates.png"]


def test_a_card_of_a_regression_has_no_classes(home: Path, release: Release) -> None:
    write_example_card(home, release, "regression", privacy=Privacy(epsilon=1.0, delta=1e-5))
    text = ParsedPage((home / "card" / "card.html").read_text()).text
    assert "mean absolute error" in text
    assert "without an estimate of its uncertainty" in text
    assert "Training curves are omitted" in text  # curves of private training
    assert "recall" not in text


@pytest.mark.parametrize(
    "text", ["a|b", "1. x", "# x", "- x", "<b>", "&amp;", "*x*", "_x_", "[x](y)", "`x`", "\\|", "~x~"]
)
def test_text_is_rendered_literally_in_markdown(text: str) -> None:
    page = MarkdownIt().enable(["table", "strikethrough"]).render(f"| h |\n| --- |\n| {escape_markdown(text)} |\n")
    assert ParsedPage(page).text.split() == ["h", *text.split()]
    paragraph = ParsedPage(MarkdownIt().render(escape_markdown(text)))
    assert (paragraph.text.strip(), paragraph.elements) == (text, {"p"})


def test_a_large_picture_is_shrunk_and_a_missing_one_is_left_out(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (800, 1600, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    (tmp_path / "card").mkdir()
    assert shrink_picture(tmp_path / "noise.png", tmp_path / "card", "n.png", "noise") == [Picture("n.png", "noise")]
    assert (tmp_path / "card" / "n.png").stat().st_size <= 100_000
    pixels = np.full((400, 400, 3), 255, np.uint8)
    pixels[:, :, 1] -= (np.arange(400) // 2).astype(np.uint8)  # wide areas of many colours beside two small marks
    pixels[5:8, 5:8], pixels[5:8, 15:18] = (26, 127, 55), (31, 95, 168)
    Image.fromarray(pixels).save(tmp_path / "marked.png")
    shrink_picture(tmp_path / "marked.png", tmp_path / "card", "k.png", "marks")
    with Image.open(tmp_path / "card" / "k.png") as image:
        differences = np.abs(np.asarray(image.convert("RGB")).astype(int) - pixels)[5:8, 5:18]
    assert differences.max() <= 8
    assert shrink_picture(tmp_path / "none.png", tmp_path / "card", "m.png", "none") == []
    table = Table(("x", "n"), [("a", "1")], frozenset({"n"}))
    render_card(Card("t", "f", [Section("s", points=["p"], tables=[table])]), tmp_path / "card")
    assert "| x | n |\n| --- | ---: |\n| a | 1 |\n" in (tmp_path / "card" / "card.md").read_text()


def test_the_card_shows_prices(home: Path, release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLOOMERY_GRAMS_PER_KWH", "380")
    monkeypatch.setenv("BLOOMERY_PRICE_OF_HOUR", "3600 EUR")
    settings.cache_clear()
    write_example_card(home, release, "classification")
    text = re.sub(r"\s+", " ", ParsedPage((home / "card" / "card.html").read_text()).text)
    assert "7.0 5.0 0.02 kWh 7.6 g 7 EUR" in text
