"""Versions that another tool has registered: every command says so, and none fails on tags that it does not know."""

from __future__ import annotations

import io
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import bloomery
from bloomery.data_contracts.errors import DataMissing, DataUnfit, OutputCorrupt
from bloomery.data_contracts.monitoring import Monitor
from bloomery.flows.cli.commands import serve, show
from bloomery.tasks.monitoring.monitor import monitor_window
from bloomery.tasks.registry import approvals, bento_provenance, period_aliases, version_description
from bloomery.tasks.registry import champion as promotions
from bloomery.tasks.registry import model_registry as registry
from bloomery.tasks.tracking import mlflow_runs

NOW = datetime(2026, 11, 30, tzinfo=UTC)
# Names that Bloomery gives its own tags, with values of another tool.
TAGS = {"approval": "approved", "bento": "yes", "period": "2019 Q1", "size_bytes": "big", "release": "[/ok]"}


@pytest.fixture
def foreign(home: Path) -> Callable[..., Any]:
    """Registers a version of `churn [red]model` with the given tags, and makes it champion."""
    client = mlflow_runs.client()
    client.create_registered_model("churn [red]model", tags={"promotion.note": "by hand"})

    def make(**tags: str) -> Any:
        version = client.create_model_version("churn [red]model", source=str(home), tags=tags)
        client.set_registered_model_alias("churn [red]model", registry.CHAMPION, version.version)
        return registry.find_version(f"churn [red]model:{version.version}")

    return make


def text_of(renderable: Any) -> str:
    console = Console(file=io.StringIO(), width=160, emoji=False)
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("tags", [{}, TAGS], ids=["no tags", "tags of the same names"])
def test_they_are_shown_and_not_used(foreign: Callable[..., Any], tags: dict[str, str]) -> None:
    version = foreign(**tags)
    document = show.versions_document(version.name)
    assert "churn [red]model, newest first" in text_of(show.versions_tree(document))
    assert "version 1 (champion)" in text_of(show.versions_tree(document))
    assert "registered by another tool" in text_of(show.versions_tree(document))
    document = show.version_document(f"{version.name}@champion")
    assert document["summary"]["bento"] == "none: another tool has registered this version"
    assert "size" not in document["summary"]
    for draw in (show.version_tree, show.version_summary):
        assert "churn [red]model version 1" in text_of(draw(document))
    assert promotions.promotion_history(version.name) == []
    assert approvals.find_request(version) is None
    assert period_aliases.newer_period(version, "2018-01") is None
    uses: tuple[Callable[[], object], ...] = (
        lambda: bloomery.load(f"{version.name}@champion"),
        lambda: promotions.write_champion_pointer(version.name),
        lambda: bento_provenance.read_provenance(f"{version.name}:1"),
        lambda: monitor_window(version, Monitor(), NOW, NOW),
        lambda: serve._artifacts_of(f"{version.name}:1"),
    )
    for use in uses:
        with pytest.raises(DataUnfit, match=r"churn \[red\]model version 1 was not registered by Bloomery") as caught:
            use()
        assert "models:/churn [red]model/1" in caught.value.remedy


def test_the_error_names_versions_of_bloomery_if_there_are_some(foreign: Callable[..., Any]) -> None:
    foreign(bento="churn:abc")
    with pytest.raises(DataUnfit) as caught:
        registry.require_bento_tag(foreign())
    assert caught.value.required == "a version that `bloomery run` has registered: churn [red]model:1"


def test_a_foreign_champion_can_be_replaced(foreign: Callable[..., Any], release: Any) -> None:
    champion = foreign(**TAGS)
    description = version_description._compare_with_champion(release.bento, champion, None)
    assert description.startswith("Against version 1, the champion when this one was registered: not comparable")
    with promotions.champion_lock(champion.name):
        promotions._record_foreign_change(champion.name)
    (change,) = promotions.promotion_history(champion.name)
    assert (change.action, change.version, change.bento) == ("found", 1, "")
    mlflow_runs.client().set_registered_model_tag(champion.name, "promotion.000001", "{}")
    with pytest.raises(OutputCorrupt, match=r"the tag promotion\.000001 of churn \[red\]model cannot be read"):
        promotions.promotion_history(champion.name)


def test_references_of_mlflow_and_slips_are_understood_or_corrected(foreign: Callable[..., Any]) -> None:
    for number in (1, 2):
        assert int(foreign().version) == number
    name = "churn [red]model"
    for reference in (f"models:/{name}/2", f"models:/{name}@champion", f"models:/{name}"):
        assert registry.find_version(reference).version == "2"
    slips = {
        f"{name}@1": f"{name} has no alias '1'; did you mean {name}:1?",
        f"{name}@production": f"{name} has no alias 'production'",
        "Churn [RED]Model@champion": f"did you mean {name}?",
        f"{name}:7": f"the registry has no {name}:7",
        f"{name}:latest": f"the registry has no {name}:latest",
    }
    for reference, message in slips.items():
        with pytest.raises(DataMissing) as caught:
            registry.find_version(reference)
        assert message in caught.value.found
    mlflow_runs.client().delete_registered_model_alias(name, registry.CHAMPION)
    with pytest.raises(DataMissing, match="has no champion") as caught:
        registry.find_version(name)
    assert "bloomery promote" in caught.value.remedy
    mlflow_runs.client().create_registered_model("empty")
    with pytest.raises(DataMissing, match="the model 'empty' has no version"):
        registry.require_versions("empty")
