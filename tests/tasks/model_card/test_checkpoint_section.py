"""A network that starts from a checkpoint says so in its lineage, its tags and its card."""

from __future__ import annotations

from pathlib import Path

from bloomery.data_contracts.records.checkpoint import Checkpoint, checkpoint_tags
from bloomery.data_contracts.records.lineage import describe_lineage
from bloomery.data_contracts.records.records import TrainedNetwork
from bloomery.models.networks.config import Fused, Mlp
from bloomery.models.networks.pretrained_config import Pretrained
from bloomery.tasks.checkpoints.input_checkpoints import find_checkpoints
from bloomery.tasks.model_card.checkpoint_section import checkpoint_sections
from bloomery.tasks.model_card.rendering import Card, render_card

CHECKPOINT = Checkpoint(
    reference="package:tiny",
    revision="tiny 1.0",
    folder="/somewhere",
    files={"model.safetensors": "f" * 64, "config.json": "c" * 64},
    licence="apache-2.0",
    card="A *tiny* network with <b>random</b> weights.",
)


def test_each_checkpoint_of_a_network_is_recorded_once_without_its_path():
    model = Pretrained(kind="pretrained", checkpoint="package:tiny", resolved=CHECKPOINT)
    (checkpoint,) = find_checkpoints(model)
    assert checkpoint == CHECKPOINT.without_folder()
    assert find_checkpoints(Mlp(kind="mlp")) == find_checkpoints(Fused(kind="fused")) == ()
    assert find_checkpoints(Pretrained(kind="pretrained", checkpoint="x")) == ()


def test_the_lineage_names_reference_revision_licence_and_files(release):
    trained = release.bento.choice.candidates.trained
    assert "checkpoints" not in trained.model_dump()
    trained = trained.model_copy(update={"checkpoints": (CHECKPOINT.without_folder(),)})
    assert TrainedNetwork.model_validate_json(trained.model_dump_json()) == trained
    lines = describe_lineage(trained)
    assert lines[1] == (
        "checkpoint",
        CHECKPOINT.digest,
        "package:tiny (tiny 1.0), licence apache-2.0: config.json cccccccccccc, model.safetensors ffffffffffff",
    )
    assert lines[2][0] == "prepare"


def test_tags_name_every_checkpoint():
    other = Checkpoint(reference="folder", files={"config.json": "d" * 64})
    assert checkpoint_tags(()) == {}
    assert checkpoint_tags((CHECKPOINT, other)) == {
        "checkpoint": "package:tiny (tiny 1.0)",
        "checkpoint.sha256": CHECKPOINT.digest,
        "checkpoint.licence": "apache-2.0",
        "checkpoint.2": "folder",
        "checkpoint.2.sha256": other.digest,
    }


def test_the_card_quotes_the_card_of_the_checkpoint(tmp_path: Path):
    sections = list(checkpoint_sections((CHECKPOINT,)))
    render_card(Card(title="made", facts="", sections=sections), tmp_path)
    text = (tmp_path / "card.md").read_text()
    assert "package:tiny (tiny 1.0)" in text
    assert "f" * 64 in text
    page = (tmp_path / "card.html").read_text()
    assert "&lt;b&gt;random&lt;/b&gt;" in page
    assert list(checkpoint_sections(())) == []
