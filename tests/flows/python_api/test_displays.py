"""What a notebook shows of a version."""

from __future__ import annotations

import html
from pathlib import Path

import numpy as np
import pytest

from bloomery.data_contracts.errors import DataMissing
from bloomery.flows.python_api.displays import Card, ConfusionMatrix, ParetoFront, html_table

COUNTS = np.array([[8, 2, 0], [0, 0, 0], [1, 0, 9]])


def test_texts_are_escaped() -> None:
    table = html_table("<title>", ("<h>",), [("<script>",)], "<note>")
    assert "<script>" not in table
    for text in ("<title>", "<h>", "<script>", "<note>"):
        assert html.escape(text) in table
    matrix = ConfusionMatrix("label", ("<b>", "a & b", 3), COUNTS)
    assert "<b>&lt;b&gt;" not in matrix._repr_html_()
    assert "&lt;b&gt;" in matrix._repr_html_()
    assert "a &amp; b" in matrix._repr_html_()


def test_a_confusion_matrix_shows_counts_and_recalls() -> None:
    matrix = ConfusionMatrix("kind", ("a", "b", "c"), COUNTS)
    assert matrix.recalls == pytest.approx([0.8, np.nan, 0.9], nan_ok=True)
    assert matrix.to_pandas().loc["a", "b"] == 2
    assert matrix.to_pandas().index.name == "true kind"
    shown = matrix._repr_html_()
    assert "20 held-out rows" in shown
    assert "80.0%" in shown
    assert "nan" not in shown
    assert "true kind" in str(matrix)


def test_a_confusion_matrix_of_many_classes_lists_the_most_frequent_confusions() -> None:
    counts = np.diag(np.full(60, 5))
    counts[3, 7], counts[50, 1] = 4, 2
    shown = ConfusionMatrix("kind", tuple(f"c{number}" for number in range(60)), counts)._repr_html_()
    assert shown.index(">c3<") < shown.index(">c50<")
    assert "the most frequent confusions" in shown


def test_a_card_is_shown_in_a_frame_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "card.html").write_text('<p class="x">text</p>')
    (tmp_path / "card.md").write_text("# wine\n\ntext\n")
    card = Card.read(tmp_path, "card.html", "card.md")
    bundle = card._repr_mimebundle_()
    assert bundle["text/markdown"] == str(card) == "# wine\n\ntext\n"
    assert html.escape('<p class="x">text</p>') in bundle["text/html"]
    assert "sandbox" in bundle["text/html"]
    assert repr(card) == "wine"
    with pytest.raises(DataMissing, match="the model card of this version is not here"):
        Card.read(tmp_path / "none", "card.html", "card.md")


def test_candidates_are_shown_with_the_plot_of_their_front() -> None:
    rows = ({"rank": "1", "candidate": "int8"}, {"rank": "2", "candidate": "<fp32>"})
    front = ParetoFront("wine", rows, {"rank": [1, 2], "size_bytes": [10, 20]}, b"png")
    bundle = front._repr_mimebundle_()
    assert bundle["image/png"] == "cG5n"
    assert "data:image/png;base64,cG5n" in bundle["text/html"]
    assert "&lt;fp32&gt;" in bundle["text/html"]
    assert ">rank<" not in bundle["text/html"]
    assert str(front).splitlines() == ["wine", "rank  candidate", "1     int8", "2     <fp32>"]
    assert front.to_pandas()["size_bytes"].tolist() == [10, 20]
    assert "image/png" not in ParetoFront("wine", rows, {}, None)._repr_mimebundle_()
