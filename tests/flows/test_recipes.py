"""The recipes that come with Bloomery, without their data and with it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import pytest
import torch

from bloomery.data_contracts.errors import DataMissing
from bloomery.data_contracts.recipe_sections.data_source import SourceFile
from bloomery.data_contracts.recipe_sections.source_paths import path_variable
from bloomery.data_contracts.records.records import Dataset
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.flows.cli.commands.up import select_recipes
from bloomery.flows.recipe.recipe import CONTRACTS, Recipe, read_recipe
from bloomery.flows.recipe.recipe_files import bundled_recipes
from bloomery.models.networks.blueprint import Blueprint, build_network
from bloomery.tasks.ingest.stage import ingest, locate_source
from bloomery.tasks.prepare.stage import prepare
from bloomery.tasks.validate.stage import validate
from tests.checkpoints import save_network, write_json
from tests.flows.bundled import ON_HUB, installed_recipes

DATA_VARIABLE = "BLOOMERY_DATA"
# Of recipes that read the rows of another one.
SHARED_CONTRACTS = {"clinc150-minilm": "clinc150", "fashion-mnist-resnet": "fashion-mnist"}


class PreparedRecipe(NamedTuple):
    dataset: Dataset
    recipe: Recipe
    home: Path

    def column(self, split: str, name: str) -> list[Any]:
        """Returns the values of a column in a split, as in the valid rows."""
        keys = pq.read_table(self.home / getattr(self.dataset, split).uri)[self.dataset.key].to_pylist()
        rows = pq.read_table(self.home / self.dataset.valid_rows.uri, columns=[self.dataset.key, name])
        values = dict(zip(rows[self.dataset.key].to_pylist(), rows[name].to_pylist(), strict=True))
        return [values[key] for key in keys]


def prepare_recipe(name: str, datasets: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> PreparedRecipe:
    """Ingests, validates and prepares the recipe's data, with no row quarantined."""
    monkeypatch.setenv(DATA_VARIABLE, str(datasets))
    recipe = read_recipe(name)
    checked = validate(ingest(locate_source(recipe.data, recipe.contract.personal_columns)), recipe.contract)
    assert checked.num_quarantined == 0
    return PreparedRecipe(prepare(checked, recipe.features, recipe.engine_settings), recipe, home)


def sizes(dataset: Dataset) -> tuple[int, int, int]:
    return dataset.train.num_rows, dataset.val.num_rows, dataset.test.num_rows


@pytest.mark.parametrize("name", installed_recipes())
def test_a_recipe_is_read_from_any_folder_without_its_data(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    recipe = read_recipe(name)
    assert recipe.name == name
    assert recipe.contract.name == SHARED_CONTRACTS.get(name, name)
    monkeypatch.setenv(DATA_VARIABLE, "elsewhere")
    assert read_recipe(name).digest == recipe.digest


@pytest.mark.parametrize("name", [name for name in installed_recipes() if name != "digits"])
def test_a_recipe_without_its_data_reports_where_to_obtain_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    data = read_recipe(name).data
    assert {path_variable(origin.source) for origin in data.source_files} == {DATA_VARIABLE}
    with pytest.raises(DataMissing, match=f"variable {DATA_VARIABLE} is not set") as caught:
        locate_source(data)
    assert data.obtain is not None
    assert data.obtain in caught.value.remedy


@pytest.fixture
def hub_cache(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of Hugging Face, without a network."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "hub").mkdir()
    return tmp_path / "hub"


def test_a_recipe_whose_checkpoint_was_never_downloaded_reports_how_to_get_it(hub_cache: Path) -> None:
    for name, reference in ON_HUB.items():
        with pytest.raises(DataMissing, match=rf"cannot be downloaded(.|\n)*hf download {reference}"):
            read_recipe(name)
    selection = select_recipes((), with_bundled=True)  # the services start without it
    assert ON_HUB.keys() <= selection.problems.keys()
    assert set(selection.references) == set(installed_recipes())


def test_the_recipe_with_a_residual_network_reads_what_its_checkpoint_states(hub_cache: Path) -> None:
    folder = hub_cache / "models--microsoft--resnet-18"
    snapshot = folder / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("a" * 40)
    sizes_and_depths = {"hidden_sizes": [8, 16], "depths": [1, 1], "embedding_size": 8, "layer_type": "basic"}
    save_network(snapshot, "resnet", sizes_and_depths)
    # As in the repository, in the format of older versions.
    preprocessor = {"feature_extractor_type": "ConvNextFeatureExtractor", "crop_pct": 0.875, "size": 224, "resample": 3}
    preprocessor |= {"do_resize": True, "do_normalize": True}
    moments = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    write_json(snapshot / "preprocessor_config.json", preprocessor | moments)
    recipe = read_recipe("fashion-mnist-resnet")
    (source,) = recipe.features.inputs
    assert source.input_shape == (3, 40, 40)
    assert source.steps.mean == (0.485, 0.456, 0.406)
    blueprint = Blueprint(config=recipe.model, layout=Layout(kind="image", shape=source.input_shape), num_outputs=10)
    assert build_network(blueprint).eval()(torch.zeros(2, *source.input_shape)).shape == (2, 10)


def test_every_contract_has_its_recipe() -> None:
    contracts = {path.name.removesuffix(".odcs.yaml") for path in CONTRACTS.glob("*.odcs.yaml")}
    assert contracts == set(bundled_recipes()) - set(SHARED_CONTRACTS)


def test_pen_digits_keep_the_published_writers_apart(
    datasets: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare_recipe("pendigits", datasets, home, monkeypatch)
    train, val, test = sizes(prepared.dataset)
    assert (train + val, test) == (7_494, 3_498)
    assert 650 < val < 850
    assert prepared.dataset.layout.shape == (8, 2)


@pytest.mark.slow
def test_intents_and_out_of_scope_requests_keep_the_published_splits(
    datasets: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare_recipe("clinc150", datasets, home, monkeypatch)
    train, val, test = sizes(prepared.dataset)
    assert (train + val, test) == (18_199, 5_500)  # one text is in both training lists
    assert 800 < val < 1_000
    assert len(prepared.dataset.classes) == 151
    assert Counter(prepared.column("test", "scope")) == {"in": 4_500, "out": 1_000}


@pytest.mark.slow
def test_spoken_digits_are_tested_with_the_first_five_takes(
    datasets: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare_recipe("spoken-digits", datasets, home, monkeypatch)
    train, val, test = sizes(prepared.dataset)
    assert (train + val, test) == (2_700, 300)
    assert Counter(prepared.column("test", "take")) == dict.fromkeys("01234", 60)
    assert set(prepared.column("test", "speaker")) == set(prepared.column("train", "speaker"))


@pytest.mark.slow
def test_fine_dust_is_trained_until_the_summer_of_2013_and_tested_in_2014(
    datasets: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare_recipe("beijing-pm25", datasets, home, monkeypatch)
    assert set(prepared.column("test", "year")) == {2014}
    assert set(zip(prepared.column("val", "year"), prepared.column("val", "month"), strict=True)) == {
        (2013, month) for month in range(7, 13)
    }
    # Hours without a measurement, and the first 24 of each split; those of train have none.
    assert prepared.dataset.num_dropped == 2_067 + 2 * 24
    assert sum(sizes(prepared.dataset)) == 43_824 - prepared.dataset.num_dropped


@pytest.mark.slow
def test_all_people_of_the_census_are_counted_in_two_classes(
    datasets: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare_recipe("adult", datasets, home, monkeypatch)
    train, val, test = sizes(prepared.dataset)
    assert (train + val, test) == (32_561, 16_281)
    assert Counter(prepared.column("test", "income")) == {"<=50K": 12_435, ">50K": 3_846}


@pytest.mark.slow
def test_a_speaker_can_be_left_out_as_the_recipe_describes(
    datasets: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DATA_VARIABLE, str(datasets))
    recipe = read_recipe("spoken-digits")
    source = recipe.data.source_files[0].source
    files = {"test": "_theo_", "val": "_george_", "train": "_(?!theo_|george_)[a-z]+_"}
    origins = tuple(SourceFile(source=source, files=pattern, part=part) for part, pattern in files.items())
    checked = validate(ingest(locate_source(recipe.data.model_copy(update={"sources": origins}))), recipe.contract)
    split = recipe.features.split.model_copy(update={"apart": ("speaker",)})
    dataset = prepare(checked, recipe.features.model_copy(update={"split": split}), recipe.engine_settings)
    assert sizes(dataset) == (2_000, 500, 500)
    assert set(PreparedRecipe(dataset, recipe, home).column("test", "speaker")) == {"theo"}
