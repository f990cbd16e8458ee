"""Recipes and models are found by a name or by a path."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bloomery.data_contracts.errors import BloomeryError, DataMissing, RecipeInvalid, SettingInvalid
from bloomery.flows.recipe.recipe import read_recipe
from bloomery.flows.recipe.recipe_files import (
    RECIPES,
    find_recipe,
    other_files,
    own_recipes,
    reference_of,
    remember_recipe,
    resolve_model,
    resolve_model_name,
)
from bloomery.tasks.infrastructure.settings import settings

WriteRecipe = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, and a state folder without recipes."""
    monkeypatch.setenv("BLOOMERY_HOME", str(tmp_path / "home"))
    settings.cache_clear()
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    yield tmp_path / "work"
    settings.cache_clear()


@pytest.fixture
def write_recipe(folder: Path) -> WriteRecipe:
    """Writes the recipe `digits` under another name."""

    def write(path: str, name: str) -> Path:
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text((RECIPES / "digits.yaml").read_text().replace("name: digits", f"name: {name}", 1))
        return file

    return write


@pytest.mark.parametrize(
    "reference", ["wine", "wine.yaml", "./wine.yaml", "{folder}/wine.yaml", "{folder}/wine", "red-wine"]
)
def test_a_recipe_is_found_by_name_and_by_path(folder: Path, write_recipe: WriteRecipe, reference: str) -> None:
    path = write_recipe("wine.yaml", "red-wine")
    assert find_recipe(reference.format(folder=folder)) == path
    assert read_recipe(reference.format(folder=folder)).name == "red-wine"


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("reference", ["digits", "digits.yaml", str(RECIPES / "digits.yaml")])
def test_a_bundled_recipe_is_found_in_any_folder(reference: str) -> None:
    assert find_recipe(reference) == RECIPES / "digits.yaml"
    assert reference_of(find_recipe(reference)) == "digits"


def test_a_file_of_the_current_folder_comes_before_a_bundled_recipe_of_its_name(write_recipe: WriteRecipe) -> None:
    path = write_recipe("digits.yaml", "digits")
    assert find_recipe("digits") == find_recipe("digits.yaml") == path
    path.rename(path.with_name("other.yaml"))
    assert find_recipe("digits") == RECIPES / "digits.yaml"  # a file of another name does not


def test_other_files_hide_no_recipe(folder: Path) -> None:
    (folder / "digits.yaml").write_text("kind: DataContract\nname: digits\n")
    (folder / "adult").write_text("no recipe")
    (folder / "pendigits").mkdir()
    (folder / "broken.yaml").write_text("{")
    for name in ("digits", "adult", "pendigits"):
        assert find_recipe(name) == RECIPES / f"{name}.yaml"
    assert own_recipes() == {}
    (folder / "compose.yaml").write_text("services: {}\n")
    (folder / "half.yml").write_text("name: half\ndata: x.csv\n")
    (folder / "number.yml").write_text("name: 7\ndata: x.csv\ncontract: x\n")
    (folder / "x.odcs.yaml").write_text("name: x\n")
    assert {Path(path).name: reason for path, reason in other_files().items()} == {
        "broken.yaml": "it is not YAML on line 2: did not find expected node content",
        "compose.yaml": "it is no recipe: it has no `contract` and no `data` and no `name`",
        "half.yml": "it is no recipe: it has no `contract`",
        "number.yml": "its `name` is 7, not text",
    }


def test_a_file_name_means_a_file_and_no_recipe_of_that_name(folder: Path, write_recipe: WriteRecipe) -> None:
    write_recipe("mine.yaml", "wine")
    with pytest.raises(DataMissing, match=r"there is no recipe 'wine.yaml'"):
        find_recipe("wine.yaml")
    with pytest.raises(DataMissing, match=r"there is no recipe 'digits.yml'"):
        find_recipe("digits.yml")
    elsewhere = write_recipe("sub/wine.yaml", "wine")
    remember_recipe("wine", elsewhere)
    assert find_recipe("wine.yaml") == elsewhere


def test_a_recipe_that_has_run_is_found_in_any_folder(
    folder: Path, write_recipe: WriteRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_recipe("sub/mine.yaml", "wine")
    with pytest.raises(DataMissing):
        find_recipe("wine")
    remember_recipe("wine", path)
    remember_recipe("digits", RECIPES / "digits.yaml")
    monkeypatch.chdir(folder.parent)
    assert find_recipe("wine") == path
    assert own_recipes() == {"wine": path}
    path.unlink()
    assert own_recipes() == {}


def test_the_users_recipes_are_those_of_the_current_folder_and_those_that_have_run(write_recipe: WriteRecipe) -> None:
    beside, here, older = (write_recipe(*file) for file in (("a/b.yaml", "b"), ("c.yml", "c"), ("c-old.yaml", "c")))
    remember_recipe("b", beside)
    remember_recipe("c", here)
    assert own_recipes() == {"b": beside, "c": here}
    remember_recipe("c", older)
    assert own_recipes() == {"b": beside, "c": older}


def test_two_files_of_one_name_must_be_told_apart(write_recipe: WriteRecipe) -> None:
    write_recipe("wine-1.yaml", "wine")
    write_recipe("wine-2.yaml", "wine")
    with pytest.raises(SettingInvalid, match=r"2 recipes are named 'wine': wine-1.yaml, wine-2.yaml"):
        find_recipe("wine")
    path = write_recipe("wine.yaml", "wine")
    assert find_recipe("wine") == path


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("digts", ["there is no recipe 'digts'", "did you mean digits"]),
        ("wnie", ["did you mean wine?"]),
        ("digits@champion", ["digits@champion names a version", "leave @champion out: digits"]),
        ("digits:3", ["leave :3 out: digits"]),
        ("sub", ["'sub' is a folder", "such as sub/mine.yaml"]),
        ("sub/mien.yaml", ["there is no recipe 'sub/mien.yaml'; did you mean sub/mine.yaml?"]),
        ("nowhere/x.yaml", ["the folder has none"]),
        (".", ["'.' is a folder", "such as wine.yaml"]),
        ("./", ["'./' is a folder", "such as wine.yaml"]),
        ("/", ["'/' is a folder"]),
    ],
)
def test_an_unknown_recipe_is_an_error_with_similar_ones(
    write_recipe: WriteRecipe, reference: str, words: list[str]
) -> None:
    write_recipe("wine.yaml", "wine")
    write_recipe("sub/mine.yaml", "mine")
    with pytest.raises(BloomeryError) as caught:
        find_recipe(reference)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("reference", "model"),
    [
        ("digits", "digits"),
        ("digits:3", "digits:3"),
        ("models:/digits/3", "digits:3"),
        ("models:/digits@champion", "digits@champion"),
        ("models:/digits", "digits"),
        ("digits@champion", "digits@champion"),
        ("digits.yaml", "digits"),
        ("digits.yaml@champion", "digits@champion"),
        ("./sub/mine.yaml", "red-wine"),
        ("sub/mine.yaml:3", "red-wine:3"),
        ("sub/mine@2026-11", "red-wine@2026-11"),
        ("gone.yaml:2", "gone:2"),  # only the registry knows it
    ],
)
def test_a_model_is_named_by_its_recipe(write_recipe: WriteRecipe, reference: str, model: str) -> None:
    write_recipe("sub/mine.yaml", "red-wine")
    assert resolve_model(reference) == model


def test_a_command_about_a_model_takes_no_single_version(write_recipe: WriteRecipe) -> None:
    write_recipe("sub/mine.yaml", "red-wine")
    assert resolve_model_name("sub/mine.yaml") == resolve_model_name("red-wine@champion") == "red-wine"
    for reference in ("red-wine:3", "sub/mine.yaml@2026-11"):
        with pytest.raises(SettingInvalid, match="names one version"):
            resolve_model_name(reference)
    with pytest.raises(DataMissing, match="there is no recipe"):
        resolve_model("sub/mien.yaml")


def test_a_file_without_a_name_names_no_model(folder: Path) -> None:
    (folder / "notes.yaml").write_text("- a\n- b\n")
    with pytest.raises(RecipeInvalid, match="has no `name`"):
        resolve_model("notes.yaml")
    (folder / "notes.yaml").write_text("name: wine\ndata: [1\n")
    with pytest.raises(RecipeInvalid, match=r"notes\.yaml is not YAML: ") as caught:
        resolve_model("notes.yaml@champion")
    assert caught.value.where.endswith("notes.yaml:3")
