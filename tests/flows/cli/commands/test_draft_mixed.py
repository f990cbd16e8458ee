"""`bloomery init` on tables with texts, images and recordings beside columns: a fused network reads all of them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bloomery.data_contracts.errors import DataMissing, DataUnfit
from bloomery.data_contracts.records.tensor_layout import Layout, Part, mixed_layout
from bloomery.flows.cli.commands.init import list_inferences, write_drafts
from bloomery.flows.recipe.recipe import Recipe, read_recipe
from bloomery.models.compression.config import Compression
from bloomery.models.compression.default_candidates import default_candidates
from bloomery.models.features.input_config import TextInput
from bloomery.models.networks.blueprint import Blueprint, build_network
from bloomery.models.networks.config import Fused
from bloomery.models.networks.pretrained_config import Pretrained
from bloomery.models.training.config import Training
from bloomery.models.training.layer_freezing import freeze_parameters
from bloomery.tasks.scaffolding.mixed_network import draft_mixed_network
from bloomery.tasks.scaffolding.planning.draft_planning import ColumnRoles
from bloomery.tasks.scaffolding.planning.input_plans import InputPlan, PlannedInput
from bloomery.tasks.scaffolding.planning.mixed_inputs import plan_mixed
from bloomery.tasks.scaffolding.planning.pretrained_inputs import suggest_checkpoint
from bloomery.tasks.scaffolding.pretrained_network import draft_fused_network, draft_pretrained_network
from bloomery.tasks.scaffolding.profiling.profiler import ColumnProfile, SourceProfile
from bloomery.tasks.scaffolding.source_options.reader_options import UserOptions
from tests.flows.cli.commands.drafts import validate_rows

WORDS = ("red", "green", "blue", "quick", "slow", "old", "house", "garden", "river", "bread", "water", "fine", "good")
RANDOM = random.Random(0)


def title(number: int) -> str:
    return " ".join([*RANDOM.choices(WORDS, k=5), str(number)])


def draft(
    folder: Path, rows: list[dict[str, Any]], label: str = "kind", checkpoint: str | None = None
) -> tuple[Recipe, dict[str, str]]:
    """Drafts a recipe for rows in a file, and returns it with what was inferred."""
    source = folder / "rows.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)))
    drafts = write_drafts(
        "mine", [str(source)], ColumnRoles(label, checkpoint=checkpoint), UserOptions(), output=folder, force=True
    )
    return read_recipe(str(drafts.recipe)), dict(list_inferences(drafts))


def test_texts_and_images_beside_columns_are_read_by_one_network(home: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    rows = []
    for number in range(60):
        pixels = np.full((6, 5, 3), number * 4, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{number}.png")
        rows.append(
            {
                "photo": None if number % 10 == 0 else f"pictures/{number}.png",
                "title": None if number % 7 == 0 else title(number),
                "review": " ".join(title(number) for _ in range(4)),
                "size": number % 9,
                "kind": "cat" if number % 2 else "dog",
            }
        )
    recipe, _ = draft(tmp_path, rows)
    assert recipe.model is not None
    assert recipe.model.kind == "fused"
    inputs = [source.model_dump(exclude_defaults=True) for source in recipe.features.inputs]
    assert [(source["kind"], source.get("missing")) for source in inputs] == [
        ("number", None),
        ("text", None),
        ("text", "absent"),
        ("image", "absent"),
    ]
    assert [source["column"] for source in inputs[1:]] == ["review", "title", "photo"]
    assert inputs[3]["shape"] == (3, 6, 5)
    valid_rows = validate_rows(recipe)
    assert (valid_rows.num_rows, valid_rows.raw_rows.num_malformed) == (60, 0)


@pytest.mark.parametrize(
    ("columns", "kinds", "network"),
    [
        ({"code": lambda n: f"X-{n}-b", "size": lambda n: n % 9}, ["number"], "tabular_ensemble"),
        ({"color": lambda n: WORDS[n % 4] + " or so it is", "size": lambda n: n % 9}, ["category", "number"], None),
        ({"title": title}, ["text"], "transformer"),
        ({"title": title, "code": lambda n: f"X-{n}-b"}, ["text"], "transformer"),
        ({"title": title, "review": title}, ["text", "text"], "fused"),
        ({"title": title, "size": lambda n: n % 9}, ["number", "text"], "fused"),
    ],
)
def test_only_texts_of_several_words_are_read_beside_columns(
    columns: dict[str, Any], kinds: list[str], network: str | None, home: Path, tmp_path: Path
) -> None:
    rows = [{**{name: make(n) for name, make in columns.items()}, "kind": "yn"[n % 2]} for n in range(120)]
    recipe, inferred = draft(tmp_path, rows)
    assert [source.kind for source in recipe.features.inputs] == kinds
    assert recipe.model is not None
    assert recipe.model.kind == (network or "tabular_ensemble")
    if "code" in columns:
        assert inferred["not used"].startswith("code: it is text that differs in most rows and has few words")


def path(number: int) -> list[int]:
    return [(number * step) % 11 for step in range(1, 4 + number % 3)]


@pytest.mark.parametrize(
    ("columns", "kinds", "reason"),
    [
        ({"path": path, "title": title}, ["text", "sequence"], ""),
        ({"path": path, **dict.fromkeys("abcd", lambda n: n % 9 / 7)}, ["number", "sequence"], ""),
        (
            {"a": path, "b": path, "c": path, "d": path, "title": title},
            ["text", *["sequence"] * 3],
            "d: the model reads other arrays",
        ),
        (
            {"path": path, "a": lambda n: n % 9},
            ["sequence"],
            "a: the model reads only the array path; with --drop path it reads the others",
        ),
    ],
    ids=["text", "many columns", "many arrays", "few columns"],
)
def test_arrays_of_numbers_are_read_beside_texts_and_many_columns(
    columns: dict[str, Any], kinds: list[str], reason: str, home: Path, tmp_path: Path
) -> None:
    rows = [{**{name: make(n) for name, make in columns.items()}, "kind": "yn"[n % 2]} for n in range(120)]
    recipe, inferred = draft(tmp_path, rows)
    assert [source.kind for source in recipe.features.inputs] == kinds
    assert recipe.model is not None
    assert recipe.model.kind == ("fused" if len(kinds) > 1 else "rnn")
    assert inferred.get("not used", "") == reason


@pytest.mark.parametrize("tokenizer", ["words", "byte_pairs"])
def test_columns_learn_before_the_texts_beside_them(tokenizer: str) -> None:
    inputs = [
        PlannedInput({"kind": "number", "columns": ["a"]}, ""),
        *(PlannedInput({"kind": "text", "column": name, "length": 16, "tokenizer": tokenizer}, "") for name in "bc"),
    ]
    model, training, _ = draft_mixed_network(inputs, ["table", "b", "c"], 300, 128)
    network = Fused.model_validate(model)
    assert network.branches is not None
    text = "token_bag" if tokenizer == "words" else "transformer"
    assert [(name, branch.kind) for name, branch in network.branches.items()] == [
        ("table", "mlp"),
        ("b", text),
        ("c", text),
    ]
    assert training["best_by"] == "loss"
    columns, texts, together = Training.model_validate(training).stages
    assert columns.freeze == ("branches.1", "branches.2", "join.heads.1", "join.heads.2")
    assert texts.freeze == ("branches.0", "join.heads.0")
    assert together.freeze is None
    layout = mixed_layout(
        [
            Part(name="table", layout=Layout(kind="flat", shape=(1,))),
            *(Part(name=name, layout=Layout(kind="tokens", shape=(16,), num_tokens=300)) for name in "bc"),
        ]
    )
    for stage in (columns, texts):
        assert stage.freeze is not None
        freeze_parameters(build_network(Blueprint(config=network, layout=layout, num_outputs=2)), stage.freeze)
    model, training, _ = draft_mixed_network(inputs[1:], ["b", "c"], 300, 128)
    assert "join" not in model
    assert "stages" not in training


def test_texts_beside_columns_are_words_unless_they_have_many_rows(home: Path, tmp_path: Path) -> None:
    rows = [{"title": title(number), "size": number % 9, "kind": "yn"[number % 2]} for number in range(120)]
    recipe, _ = draft(tmp_path, rows)
    _, text = recipe.features.inputs
    assert isinstance(text, TextInput)
    assert text.tokenizer == "words"
    column = ColumnProfile(name="title", logical_type="string", num_rows=30_000, num_missing=0, mean_words=6)
    profile = SourceProfile(columns=(column,), num_rows=30_000, num_malformed=0)
    number = PlannedInput({"kind": "number", "columns": ["size"]}, "")
    plan = plan_mixed(profile, recipe.data, [number], [column], {}, ())
    assert plan is not None
    assert "tokenizer" not in plan.inputs[1].options


def test_a_checkpoint_reads_the_text_of_a_draft(home: Path, tmp_path: Path, tiny_bert: Path) -> None:
    rows = [{"title": title(n), "kind": "yn"[n % 2]} for n in range(120)]
    recipe, inferred = draft(tmp_path, rows, checkpoint=str(tiny_bert))
    (text,) = recipe.features.inputs
    assert isinstance(text, TextInput)
    assert text.tokenizer == "checkpoint"
    assert text.checkpoint is not None
    assert text.length <= json.loads((tiny_bert / "config.json").read_text())["max_position_embeddings"]
    assert inferred["checkpoint"].startswith(str(tiny_bert))
    assert isinstance(recipe.model, Pretrained)


def test_texts_beside_columns_learn_after_the_new_parts() -> None:
    config = {"model_type": "bert", "num_hidden_layers": 6, "vocab_size": 100}
    bert = Pretrained(kind="pretrained", checkpoint="package:x", config=config)
    inputs = [
        PlannedInput({"kind": "number", "columns": ["a"]}, ""),
        PlannedInput({"kind": "text", "column": "b", "tokenizer": "checkpoint", "length": 16}, ""),
        PlannedInput({"kind": "image", "column": "c", "shape": [1, 4, 4]}, ""),
    ]
    for with_table in (True, False):
        parts = (["table"] if with_table else []) + ["b", "c"]
        planned = inputs if with_table else inputs[1:]
        model, training, compression = draft_fused_network(planned, parts, bert, 500, 128)
        assert {name: branch["kind"] for name, branch in model["branches"].items()} == {
            **({"table": "mlp"} if with_table else {}),
            "b": "pretrained",
            "c": "cnn",
        }
        first, second = training["stages"]
        assert first["freeze"] == [f"branches.{int(with_table)}.body"]
        assert first["learning_rate"] > second["learning_rate"]
        assert Compression.model_validate(compression).candidates == default_candidates(
            "fused", pretrained=Fused(kind="fused", branches={"b": bert, "c": {"kind": "cnn"}})
        )


@pytest.mark.parametrize(("model_type", "mode"), [("vit", "dynamic"), ("resnet", "static")])
def test_a_network_in_8_bits_is_drafted_in_the_mode_of_its_family(model_type: str, mode: str) -> None:
    pretrained = Pretrained(kind="pretrained", checkpoint="x", config={"model_type": model_type})
    image = PlannedInput({"kind": "image", "column": "c", "preprocessing": "checkpoint"}, "")
    _, _, compression = draft_pretrained_network(image, pretrained, 500, 128)
    assert compression["candidates"] == [{"name": "fp32"}, {"name": "int8", "quantize": mode}]


@pytest.mark.parametrize(
    ("rows", "reference", "error", "message"),
    [
        ({"size": lambda n: n % 9}, "tiny_bert", DataUnfit, "is a bert, which reads texts, but the inputs are number"),
        ({"title": title}, "tiny_vit", DataUnfit, "is a vit, which reads images, but the inputs are text"),
        (
            {"title": title},
            "tiny_wav2vec2",
            DataUnfit,
            "which reads recordings, but the inputs are text",
        ),
        ({"title": title}, "nowhere", DataMissing, "nowhere"),
    ],
)
def test_a_checkpoint_that_does_not_suit_is_refused(
    rows: dict[str, Any],
    reference: str,
    error: type[Exception],
    message: str,
    home: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    content = [{**{name: make(n) for name, make in rows.items()}, "kind": "yn"[n % 2]} for n in range(120)]
    path = tmp_path / reference if reference == "nowhere" else request.getfixturevalue(reference)
    with pytest.raises(error, match=message):
        draft(tmp_path, content, checkpoint=str(path))


def test_a_checkpoint_is_suggested_where_texts_have_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    text = PlannedInput({"kind": "text", "column": "a", "length": 16}, "")
    number = PlannedInput({"kind": "number", "columns": ["b"]}, "")
    plan = InputPlan((number, text), {})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert suggest_checkpoint(plan, 300, 2).startswith("150 rows per class are few")
    assert suggest_checkpoint(plan, 300, 0).startswith("300 rows are few")
    assert not suggest_checkpoint(plan, 30_000, 2)
    assert not suggest_checkpoint(InputPlan((number,), {}), 300, 2)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not suggest_checkpoint(plan, 300, 2)
