"""A recipe is read, or refused with the line and a hint."""

from pathlib import Path

import pytest
import yaml

from bloomery.data_contracts.errors import ContractInvalid, DataMissing, RecipeInvalid
from bloomery.data_contracts.records.scores import Score
from bloomery.flows.recipe.recipe import CONTRACTS, read_recipe
from bloomery.flows.recipe.recipe_files import RECIPES
from tests.flows.bundled import installed_recipes

DIGITS = (RECIPES / "digits.yaml").read_text()


def write(folder: Path, old: str = "", new: str = "") -> Path:
    assert old in DIGITS
    path = folder / "mine.yaml"
    path.write_text(DIGITS.replace(old, new, 1) if old else DIGITS)
    return path


@pytest.mark.parametrize("name", installed_recipes())
def test_every_recipe_that_comes_with_bloomery_is_valid(name: str) -> None:
    assert read_recipe(name).name == name


def test_a_name_and_a_path_read_the_same(tmp_path: Path) -> None:
    assert read_recipe(str(write(tmp_path))) == read_recipe("digits")


def test_an_unknown_key_is_refused_with_its_line_and_the_likely_one(tmp_path: Path) -> None:
    path = write(tmp_path, "epochs: 30", "epocs: 30")
    line = next(number for number, text in enumerate(path.read_text().splitlines(), 1) if "epocs" in text)
    with pytest.raises(RecipeInvalid) as caught:
        read_recipe(str(path))
    assert f"mine.yaml:{line}: training.epocs: unknown key; did you mean 'epochs'?" in caught.value.found
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("epochs: 30", "epochs: 0", "training.epochs: found 0"),
        ("name: digits\n", "name: Digits!\n", "name: found 'Digits!'"),
        ("train: 0.6", "train: 0.7", "add up to 1.1"),
        ("{name: int8, ", "{name: fp32, ", "duplicate candidate names: fp32"),
        ("    - {name: fp32}\n", "", "must be the network as trained"),
        ("shape: [1, 8, 8]", "shape: [1, 9, 9]", "has 81 values"),
        ("column: image", "column: picture", "no column 'picture'"),
        ("label: label", "label: digit", "no column 'digit'"),
        (
            "gates:\n",
            "monitor: {columns: [label]}\ngates:\n",
            "monitor.columns names 'label', which",
        ),
        ("gates:\n", "monitor: {window: 1 day}\ngates:\n", "monitor.window: found '1 day'"),
        ("key: id", "key: label", "not a primaryKey"),
        ("column: image", "column: label", "column 'label' is the label"),
        ("objective: balanced", "objective: beauty", "budget.objective: found 'beauty'"),
        ("gates:\n", "score: rmse\ngates:\n", "RMSE is a score of a regression"),
        ("gates:\n", "score: f1\ngates:\n", "score.name: found 'f1'"),
        ("gates:\n", "score: quantile_loss\ngates:\n", "quantile_loss needs a quantile"),
        ("epochs: 30", "score: {name: auc}\n  epochs: 30", "write `score:` beside `training:`"),
        ("  min_accuracy: 0.95", "  beats: everything", "gates.beats: found 'everything'"),
        ("objective: balanced", "slice_drop: 5pp", "training.slices names no columns"),
        ("objective: balanced", "accuracy_rise: 1pp", "unknown key; did you mean 'accuracy_drop'?"),
        ("latency_ms: 2.0", "latency_ms: {value: 2.0, percentile: 98}", "budget.latency_ms.percentile: found 98"),
        ("training:\n  epochs: 30\n", "training:\n  search: {trials: 2}\n", "training.epochs: missing; a network"),
        ("training:\n  epochs: 30\n  seed: 0\n", "", "training.epochs: missing; a network of kind cnn is trained"),
    ],
)
def test_an_impossible_recipe_is_refused_with_the_reason(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(RecipeInvalid) as caught:
        read_recipe(str(write(tmp_path, old, new)))
    assert message in caught.value.found


def test_a_contract_beside_the_recipe_comes_first(tmp_path: Path) -> None:
    contract = (CONTRACTS / "digits.odcs.yaml").read_text().replace("version: 1.0.0", "version: 7.0.0")
    (tmp_path / "digits.odcs.yaml").write_text(contract)
    assert read_recipe(str(write(tmp_path))).contract.version == "7.0.0"


def test_an_invalid_contract_file_is_reported_as_the_contract(tmp_path: Path) -> None:
    (tmp_path / "digits.odcs.yaml").write_text("apiVersion: v3.1.0\n")
    with pytest.raises(ContractInvalid, match=r"digits\.odcs\.yaml:1: .*: missing"):
        read_recipe(str(write(tmp_path)))


def write_with_tables(folder: Path, *names: str, table: str | None) -> Path:
    """Writes the recipe of digits with a contract that has a table of each name."""
    document = yaml.safe_load((CONTRACTS / "digits.odcs.yaml").read_text())
    (table_document,) = document["schema"]
    document["schema"] = [{**table_document, "name": name} for name in names]
    (folder / "several.odcs.yaml").write_text(yaml.safe_dump(document))
    reference = "several.odcs.yaml" if table is None else f"{{file: several.odcs.yaml, table: {table}}}"
    return write(folder, "contract: digits.odcs.yaml", f"contract: {reference}")


def test_a_recipe_names_one_of_several_tables(tmp_path: Path) -> None:
    recipe = read_recipe(str(write_with_tables(tmp_path, "orders", "digits", table="digits")))
    assert recipe.contract.table.name == "digits"
    assert recipe.contract.columns == read_recipe("digits").contract.columns
    assert read_recipe(
        str(tmp_path / "mine.yaml"), overrides={"contract": {"table": "orders"}}
    ).contract.table.name == ("orders")


@pytest.mark.parametrize(
    ("names", "table", "message"),
    [
        (("orders", "digits"), None, "several.odcs.yaml has 2 tables, and the recipe names none"),
        (("orders", "digits"), "digit", "contract.table: several.odcs.yaml has no table 'digit'"),
        (("orders",), "digits", "contract.table: several.odcs.yaml has no table 'digits'"),
    ],
)
def test_an_unnamed_or_unknown_table_is_refused_with_the_tables(tmp_path, names, table, message) -> None:
    with pytest.raises(RecipeInvalid) as caught:
        read_recipe(str(write_with_tables(tmp_path, *names, table=table)))
    assert message in caught.value.found
    assert caught.value.required == f"one of {', '.join(names)}"


def test_a_contract_without_a_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ContractInvalid, match="has no table"):
        read_recipe(str(write_with_tables(tmp_path, table=None)))


def test_a_column_that_cannot_be_read_is_refused_as_an_input_with_the_reason(tmp_path: Path) -> None:
    contract = (CONTRACTS / "digits.odcs.yaml").read_text()
    column = "      - {name: place, logicalType: object, physicalType: jsonb}\n"
    (tmp_path / "digits.odcs.yaml").write_text(contract.replace("    properties:\n", f"    properties:\n{column}", 1))
    with pytest.raises(RecipeInvalid, match="column 'place' of contract digits is not read: values of type object"):
        read_recipe(str(write(tmp_path, "column: image", "column: place")))


@pytest.mark.parametrize("reference", ["nope", "nope.yaml", "prefect", "digits.yml", "../digits"])
def test_a_missing_recipe_is_reported(reference: str) -> None:
    with pytest.raises(DataMissing, match="there is no recipe"):
        read_recipe(reference)


def test_a_missing_contract_is_reported(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match=r"no contract 'other\.odcs\.yaml'"):
        read_recipe(str(write(tmp_path, "contract: digits.odcs.yaml", "contract: other.odcs.yaml")))


def test_a_relative_source_is_relative_to_the_recipe(tmp_path: Path) -> None:
    recipe = read_recipe(str(write(tmp_path, "source: sklearn:digits", "source: rows.parquet")))
    assert recipe.data.source == str(tmp_path / "rows.parquet")


def test_the_digest_of_a_recipe_ignores_comments_and_counts_every_value(tmp_path: Path) -> None:
    digest = read_recipe("digits").digest
    assert read_recipe(str(write(tmp_path, "name: digits", "# a comment\nname: digits"))).digest == digest
    assert read_recipe(str(write(tmp_path, "epochs: 30", "epochs: 31"))).digest != digest


def test_invalid_yaml_is_reported_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: digits\n  data: [\n")
    with pytest.raises(RecipeInvalid, match=r"is not YAML") as caught:
        read_recipe(str(path))
    assert caught.value.where.startswith(f"{path}:")


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeInvalid, match="'name' twice"):
        read_recipe(str(write(tmp_path, "name: digits\n", "name: digits\nname: other\n")))


IMPORTED = (
    "  kind: cnn\n  channels: [32, 64]\n  hidden: 128\n\ntraining:\n  epochs: 30\n  seed: 0\n",
    "  {kind: imported, path: network.onnx}\n",
)


def test_an_imported_network_needs_no_training_and_is_identified_by_its_bytes(tmp_path: Path) -> None:
    text = DIGITS.replace("    - {name: pruned, prune: 0.5}\n", "")
    assert IMPORTED[0] in text
    text = text.replace("    - {name: pruned-int8, prune: 0.5, quantize: static}\n", "").replace(*IMPORTED)
    path, file = tmp_path / "mine.yaml", tmp_path / "network.onnx"
    path.write_text(text)
    with pytest.raises(DataMissing, match=r"refers to .*network\.onnx, which does not exist") as missing:
        read_recipe(str(path))
    assert missing.value.where == "model.path in the recipe"

    file.write_bytes(b"a network")
    recipe = read_recipe(str(path))
    assert (recipe.model.kind, recipe.model.path, recipe.training.epochs) == ("imported", str(file), 0)
    file.write_bytes(b"another one")
    assert read_recipe(str(path)).model.sha256 != recipe.model.sha256

    path.write_text(text.replace("{name: fp32}", "{name: fp32}\n    - {name: small, prune: 0.5}"))
    with pytest.raises(RecipeInvalid, match="small cannot be pruned"):
        read_recipe(str(path))


def test_an_invalid_search_space_is_refused_when_the_recipe_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, "epochs: 30", "epochs: 30\n  search: {space: {model.hiden: [16, 32]}}")
    with pytest.raises(RecipeInvalid, match=r"did you mean 'model\.hidden'"):
        read_recipe(str(path))


def test_initial_weights_are_found_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "before").mkdir()
    (tmp_path / "before" / "weights.safetensors").write_bytes(b"")
    for network in ("before", "./before"):
        start = read_recipe(str(write(tmp_path, "seed: 0", f"start_from: {{network: {network}}}"))).training.start_from
        assert start is not None
        assert start.network == str(tmp_path / "before")
    start = read_recipe(str(write(tmp_path, "seed: 0", "start_from: {network: digits@champion}"))).training.start_from
    assert start is not None
    assert start.network == "digits@champion"


def test_candidates_that_would_break_private_training_are_refused(tmp_path: Path) -> None:
    private = "training:\n  privacy: {epsilon: 3, delta: 0.0001}"
    path = write(tmp_path, "training:", private)
    path.write_text(path.read_text().replace("kind: cnn\n  channels: [32, 64]\n  hidden: 128", "kind: lenet"))
    with pytest.raises(RecipeInvalid, match="pruned would be trained on the same rows without noise"):
        read_recipe(str(path))


def test_monitor_settings_do_not_change_the_digest_of_a_recipe(tmp_path: Path) -> None:
    watched = read_recipe(str(write(tmp_path, "gates:\n", "monitor: {psi: 0.5, labels: come/here.csv}\ngates:\n")))
    assert watched.digest == read_recipe("digits").digest
    assert watched.monitor.labels == str(tmp_path / "come" / "here.csv")


def test_the_score_of_a_recipe_selects_the_best_epoch_unless_the_recipe_names_a_metric(tmp_path: Path) -> None:
    recipe = read_recipe(str(write(tmp_path, "gates:\n", "score: macro_f1\ngates:\n")))
    assert (recipe.training.score, recipe.training.best_by) == (Score(name="macro_f1"), "score")
    default = read_recipe(str(write(tmp_path, "gates:\n", "score: accuracy\ngates:\n")))
    assert default.training == read_recipe("digits").training  # a stated default requires no new training
    assert (read_recipe("digits").training.score, read_recipe("digits").training.best_by) == (None, "loss")
    text = write(tmp_path, "gates:\n", "score: {name: auc}\ngates:\n").read_text()
    (tmp_path / "mine.yaml").write_text(text.replace("epochs: 30", "epochs: 30\n  best_by: last"))
    training = read_recipe(str(tmp_path / "mine.yaml")).training
    assert (training.score, training.best_by) == (Score(name="auc"), "last")


def test_a_gate_on_baselines_needs_baselines(tmp_path: Path) -> None:
    path = write(tmp_path, "gates:\n", "gates:\n  beats: baseline\n")
    assert read_recipe(str(path)).gates.beats == "baseline"
    path.write_text(path.read_text().replace("epochs: 30", "epochs: 30\n  baselines: false"))
    with pytest.raises(RecipeInvalid, match=r"training\.baselines is false; leave `beats` out"):
        read_recipe(str(path))
