"""`bloomery init` on images and recordings: what it infers, counts and says."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from scipy.io import wavfile

from bloomery.data_contracts.errors import DataUnfit
from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.data_contracts.recipe_sections.file_column import FileColumn
from bloomery.flows.cli.commands.init import list_inferences, write_drafts
from bloomery.flows.recipe.recipe import Recipe, read_recipe
from bloomery.models.features.input_config import AudioInput, ImageInput
from bloomery.models.networks.config import Fused
from bloomery.models.networks.pretrained_config import Pretrained
from bloomery.tasks.ingest.file_columns.column_files import ColumnFiles
from bloomery.tasks.scaffolding.planning.draft_planning import ColumnRoles
from bloomery.tasks.scaffolding.source_options import file_column_options
from bloomery.tasks.scaffolding.source_options.reader_options import UserOptions
from tests.checkpoints import CheckpointFolder
from tests.flows.cli.commands.drafts import draft_recipe, validate_rows

RANDOM = np.random.default_rng(0)


def test_the_most_common_sample_rate_is_drafted_and_other_recordings_are_converted(home: Path, tmp_path: Path) -> None:
    for number in range(40):
        folder = tmp_path / "sounds" / ("yes" if number % 2 else "no")
        folder.mkdir(parents=True, exist_ok=True)
        rate = 16000 if number % 8 == 0 else 8000
        shape = (rate // 10 + number, 2) if number == 7 else (rate // 10 + number,)
        samples = RANDOM.integers(-9999, 9999, 0 if number == 5 else shape, np.int16)
        wavfile.write(folder / f"{number}.wav", rate, np.zeros(800, np.int16) if number == 9 else samples)
    draft = write_drafts("mine", [str(tmp_path / "sounds")], ColumnRoles("label"), UserOptions(), output=tmp_path)
    inferred = dict(list_inferences(draft))
    assert inferred["sample_rate"] == "8000: 35 of 40 recordings have it; 5 with 16000 Hz"
    assert inferred["resample"].startswith("yes: recordings of other rates are converted")
    assert inferred["mono"] == "yes: 1 of 40 recordings have several channels, which are averaged"
    assert inferred["malformed"].startswith("2 ")
    recipe = read_recipe(str(draft.recipe))
    assert (recipe.data.sample_rate, recipe.data.resample) == (8000, True)
    assert {source.columns: getattr(source, "sample_rate", None) for source in recipe.features.inputs} == {
        ("wave",): 8000
    }
    valid_rows = validate_rows(recipe)
    assert (valid_rows.num_rows, valid_rows.raw_rows.num_malformed) == (38, 2)
    strict = draft_recipe(tmp_path, tmp_path / "sounds", "label", UserOptions(resample=False))
    assert validate_rows(strict).num_rows == 33


def test_photographs_are_drafted_upright_and_their_number_is_said(home: Path, tmp_path: Path) -> None:
    sideways = Image.Exif()
    sideways[0x0112] = 6
    for number in range(40):
        folder = tmp_path / "pictures" / ("cat" if number % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = RANDOM.integers(0, 256, (20, 30), np.uint8)
        if number % 4:
            Image.fromarray(pixels).save(folder / f"{number}.png")
        else:  # as a camera stores it
            Image.fromarray(np.rot90(pixels)).save(folder / f"{number}.png", exif=sideways)
    Image.fromarray(np.zeros((20, 30), np.uint16)).save(tmp_path / "pictures" / "cat" / "deep.png")
    draft = write_drafts("mine", [str(tmp_path / "pictures")], ColumnRoles("label"), UserOptions(), output=tmp_path)
    inferred = dict(list_inferences(draft))
    assert inferred["mode"] == "'L': no image has colours; 10 are turned as their EXIF orientation says"
    assert "deep.png: pixels of mode I;16" in inferred["malformed"]
    recipe = read_recipe(str(draft.recipe))
    assert recipe.data.size is None
    assert {getattr(source, "shape", None) for source in recipe.features.inputs} == {(1, 20, 30)}
    assert validate_rows(recipe).num_rows == 40


def write_pictures(folder: Path, num: int) -> None:
    folder.mkdir(parents=True)
    for number in range(num):
        Image.fromarray(RANDOM.integers(0, 256, (8, 8), np.uint8)).save(folder / f"{number}.png")


def test_folders_named_by_splits_become_sources(home: Path, tmp_path: Path) -> None:
    for part, num in (("train", 30), ("validation", 15)):
        for name in ("cat", "dog"):
            write_pictures(tmp_path / "pictures" / "in" / part / name, num)
    shutil.copy(tmp_path / "pictures" / "in" / "train" / "cat" / "0.png", tmp_path / "pictures" / "in" / "all.png")
    recipe = draft_recipe(tmp_path, tmp_path / "pictures", "label")
    assert [(origin.files, origin.part) for origin in recipe.data.source_files] == [
        ("^in/train/", "train"),
        ("^in/validation/", "test"),
    ]
    assert recipe.features.split.by == "given"
    text = " ".join((tmp_path / "mine.yaml").read_text().replace("#", "").split())
    assert "not read: 1 files beside these folders" in text
    assert validate_rows(recipe).num_rows == 90


@pytest.mark.parametrize("folder", ["", "all"])
def test_files_in_no_folders_of_classes_name_the_option(folder: str, home: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures" / folder, 40)
    for number, path in enumerate(sorted((tmp_path / "pictures" / folder).iterdir())):
        path.rename(path.with_name(f"{'cat' if number % 2 else 'dog'}.{number}.png"))
    problem = "all files are in one folder, all" if folder else "the files are in no folders"
    with pytest.raises(DataUnfit, match=problem) as refusal:
        draft_recipe(tmp_path, tmp_path / "pictures", "label")
    pattern = shlex.split(refusal.value.remedy)[-1]
    options = UserOptions(path_pattern=pattern)
    draft = write_drafts("mine", [str(tmp_path / "pictures")], ColumnRoles("label"), options, output=tmp_path)
    assert dict(draft.plan.label.classes) == {"cat": 20, "dog": 20}


def test_a_column_of_file_names_is_not_learned_from(home: Path, tmp_path: Path) -> None:
    lines = "".join(f"{'cat' if n % 2 else 'dog'}_{n}.png,{n % 7},{n % 2}\n" for n in range(60))
    (tmp_path / "rows.csv").write_text("file,age,kind\n" + lines)
    draft = write_drafts("mine", [str(tmp_path / "rows.csv")], ColumnRoles("kind"), UserOptions(), output=tmp_path)
    assert "it names files, which are not opened" in dict(list_inferences(draft))["not used"]
    (tmp_path / "rows.csv").write_text("file,kind\n" + "".join(f"{n}_{n % 2}.wav,{n % 2}\n" for n in range(60)))
    with pytest.raises(
        DataUnfit, match=r"column file names files, which are not opened: 100% of them are not found in .*no such"
    ):
        draft_recipe(tmp_path, tmp_path / "rows.csv", "kind")


def test_files_that_a_table_names_are_found_below_its_folder(home: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path / "all" / "img" / "train", 60)
    (tmp_path / "all" / "img" / "train" / "9.png").write_text("no image")
    (tmp_path / "all" / "img" / "train" / "10.png").unlink()
    lines = "".join(f"data\\train\\{n}.png,{'cat' if n % 2 else 'dog'}\n" for n in range(60))
    lines += "NA,cat\nhttp://127.0.0.1:1/secret.png,dog\n"  # no server answers there
    (tmp_path / "rows.csv").write_text("Photo,kind\n" + lines)
    draft = write_drafts("mine", [str(tmp_path / "rows.csv")], ColumnRoles("kind"), UserOptions(), output=tmp_path)
    inferred = dict(list_inferences(draft))
    assert inferred["media"] == "Photo: its files are in all/img; no image has colours"
    assert inferred["quarantined"].startswith("Photo: 3 row(s) name files that do not exist or do not open, such as")
    recipe = read_recipe(str(draft.recipe))
    assert recipe.data.media is not None
    assert recipe.data.media["Photo"].model_dump(exclude_none=True) == {
        "kind": "image",
        "mode": "L",
        "size": (8, 8),
        "prefix": "data/",
        "folder": str(tmp_path / "all" / "img"),
    }
    assert "folder: all/img, prefix: data/" in (tmp_path / "mine.yaml").read_text()
    assert {getattr(source, "shape", None) for source in recipe.features.inputs} == {(1, 8, 8)}
    valid_rows = validate_rows(recipe)
    assert (valid_rows.num_rows, valid_rows.raw_rows.num_malformed) == (58, 3)


@pytest.mark.parametrize(("suffix", "problem"), [("png", "there are no images"), ("wav", "none can be decoded")])
def test_files_of_which_none_opens_are_no_input(suffix: str, problem: str, home: Path, tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"{number}.{suffix}").write_text("<html>")
    (tmp_path / "rows.csv").write_text(
        "file,age,kind\n" + "".join(f"{n}.{suffix},{n % 7},{n % 2}\n" for n in range(40))
    )
    draft = write_drafts("mine", [str(tmp_path / "rows.csv")], ColumnRoles("kind"), UserOptions(), output=tmp_path)
    assert f"it names files, which are not opened: {problem}" in dict(list_inferences(draft))["not used"]


def test_recordings_that_a_table_names_are_drafted_with_their_rate(home: Path, tmp_path: Path) -> None:
    for number in range(40):
        wavfile.write(tmp_path / f"{number}.wav", 8000, RANDOM.integers(-9999, 9999, 800 + number, np.int16))
    (tmp_path / "rows.csv").write_text("call,kind\n" + "".join(f"{n}.wav,{n % 2}\n" for n in range(40)))
    recipe = draft_recipe(tmp_path, tmp_path / "rows.csv", "kind")
    assert recipe.data.media is not None
    assert recipe.data.media["call"].model_dump(exclude_none=True) == {
        "kind": "audio",
        "sample_rate": 8000,
        "resample": True,
        "mono": True,
        "folder": str(tmp_path),
    }
    document = yaml.safe_load((tmp_path / "mine.yaml").read_text())
    assert document["data"]["media"]["call"]["folder"] == "."  # so that URLs in later rows are refused
    assert {getattr(source, "sample_rate", None) for source in recipe.features.inputs} == {8000}
    assert validate_rows(recipe).num_rows == 40


@pytest.mark.parametrize(
    ("names", "folder"),
    [
        (("a.png", "b.png"), "HERE"),
        (("https://one.example/x/a.png", " https://one.example/y/b.png"), "https://one.example"),
        (("https://one.example/a.png", "https://two.example/b.png"), None),
        (("https://one.example/a.png", "b.png"), None),
        ((*(f"{n}.png" for n in range(19)), "http://127.0.0.1/b.png"), "HERE"),
        ((*(f"https://one.example/{n}.png" for n in range(19)), "http://127.0.0.1/b.png"), "https://one.example"),
        (("hdfs://name:9000/x/y/a.png", "hdfs://name:9000/x/z/b.png"), "hdfs://name:9000/x"),
        (("hdfs://one/a.png", "hdfs://two/b.png"), None),
    ],
)
def test_drafts_name_the_folder_or_the_server_of_all_files(
    names: tuple[str, ...], folder: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bloomery.tasks.ingest.file_columns.column_files.open_folder", lambda folder: folder)
    (tmp_path / "rows.csv").write_text("")
    data = DataSource(source=str(tmp_path / "rows.csv"))
    options = FileColumn(kind="image", mode="L")
    closed = file_column_options._with_folder(ColumnFiles("photo", options, data), names, data)
    assert closed.options.folder == (str(tmp_path) if folder == "HERE" else folder)


def test_files_without_a_folder_of_a_class_are_no_class(home: Path, tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        write_pictures(tmp_path / "pictures" / "train" / name, 30)
    write_pictures(tmp_path / "pictures" / "test", 20)
    recipe = draft_recipe(tmp_path, tmp_path / "pictures", "label")
    assert (recipe.data.files, validate_rows(recipe).num_rows) == ("^train/", 60)
    assert "validValues: [cat, dog]" in (tmp_path / "mine.odcs.yaml").read_text()
    text = " ".join((tmp_path / "mine.yaml").read_text().replace("#", "").split())
    assert "not read, since it has no folders of classes: test" in text
    write_pictures(tmp_path / "vehicles" / "train", 30)  # a class
    write_pictures(tmp_path / "vehicles" / "car", 30)
    assert draft_recipe(tmp_path, tmp_path / "vehicles", "label").data.files is None


def draft_with(folder: Path, source: Path, label: str, checkpoint: Path) -> tuple[Recipe, dict[str, str]]:
    roles = ColumnRoles(label, checkpoint=str(checkpoint))
    draft = write_drafts("mine", [str(source)], roles, UserOptions(), output=folder, force=True)
    return read_recipe(str(draft.recipe)), dict(list_inferences(draft))


def test_a_checkpoint_for_images_reads_a_folder_of_them(home: Path, tmp_path: Path, tiny_vit: Path) -> None:
    for name in ("cat", "dog"):
        write_pictures(tmp_path / "pictures" / name, 30)
    for number in range(20):
        pixels = RANDOM.integers(0, 256, (20, 30, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / "dog" / f"wide-{number}.png")
    recipe, inferred = draft_with(tmp_path, tmp_path / "pictures", "label", tiny_vit)
    assert (recipe.data.mode, recipe.data.size) == ("RGB", (8, 8))
    (image,) = recipe.features.inputs
    assert isinstance(image, ImageInput)
    assert (image.preprocessing, image.shape, image.input_shape) == ("checkpoint", (3, 8, 8), (3, 16, 16))
    assert isinstance(recipe.model, Pretrained)
    assert recipe.model.checkpoint == str(tiny_vit)
    assert inferred["checkpoint"] == f"{tiny_vit}: it reads the images, as requested"
    assert validate_rows(recipe).num_rows == 80
    for path in (tmp_path / "pictures").rglob("[0-9]*.png"):
        path.unlink()
    write_pictures(tmp_path / "pictures" / "cow", 10)
    recipe, _ = draft_with(tmp_path, tmp_path / "pictures", "label", tiny_vit)
    assert recipe.data.size == (11, 16)  # as large as the network reads images


@pytest.mark.parametrize(("name", "rate"), [("wav2vec2", 1000), ("ast", 16000)])
def test_recordings_are_converted_to_the_rate_of_a_checkpoint(
    name: str, rate: int, home: Path, tmp_path: Path, checkpoint_folder: CheckpointFolder
) -> None:
    for number in range(40):
        path = tmp_path / "sounds" / ("yes" if number % 2 else "no") / f"{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        wavfile.write(path, 8000, RANDOM.integers(-9999, 9999, 3_000 + number, np.int16))
    recipe, _ = draft_with(tmp_path, tmp_path / "sounds", "label", checkpoint_folder(name))
    assert (recipe.data.sample_rate, recipe.data.resample) == (rate, True)
    (sound,) = recipe.features.inputs
    assert isinstance(sound, AudioInput)
    assert (sound.preprocessing, sound.sample_rate, sound.duration_s) == ("checkpoint", rate, 0.38)
    assert isinstance(recipe.model, Pretrained)
    assert validate_rows(recipe).num_rows == 40
    with pytest.raises(DataUnfit, match="is a bert, which reads texts, but the inputs are audio"):
        draft_with(tmp_path, tmp_path / "sounds", "label", checkpoint_folder("bert"))


def test_a_checkpoint_reads_the_images_beside_columns(home: Path, tmp_path: Path, tiny_vit: Path) -> None:
    write_pictures(tmp_path / "img", 60)
    words = ["red", "green", "blue", "quick", "slow", "old", "house", "garden"]
    titles = [" ".join([*RANDOM.choice(words, 5), str(n)]) for n in range(60)]
    lines = [f"img/{n}.png,{titles[n]},{n % 7},{'cat' if n % 2 else 'dog'}\n" for n in range(60)]
    (tmp_path / "rows.csv").write_text("photo,title,age,kind\n" + "".join(lines))
    recipe, _ = draft_with(tmp_path, tmp_path / "rows.csv", "kind", tiny_vit)
    assert isinstance(recipe.model, Fused)
    branches = {part: branch.kind for part, branch in (recipe.model.branches or {}).items()}
    assert branches == {"table": "mlp", "title": "transformer", "photo": "pretrained"}
    assert validate_rows(recipe).num_rows == 60


def test_recordings_of_a_data_set_are_read_as_the_checkpoint_reads_them(
    home: Path, tmp_path: Path, tiny_wav2vec2: Path
) -> None:
    contents = []
    for number in range(40):
        wavfile.write(tmp_path / "a.wav", 8000, RANDOM.integers(-9999, 9999, 800 + number, np.int16))
        contents.append({"bytes": (tmp_path / "a.wav").read_bytes(), "path": f"{number}.wav"})
    features = {"sound": {"_type": "Audio"}, "kind": {"_type": "Value"}}
    table = pa.table({"sound": contents, "kind": ["yes", "no"] * 20})
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "rows.parquet")
    recipe, _ = draft_with(tmp_path, tmp_path / "rows.parquet", "kind", tiny_wav2vec2)
    assert (recipe.data.kind, recipe.data.sample_rate, recipe.data.resample) == ("huggingface", 1000, True)
    assert [getattr(source, "sample_rate", None) for source in recipe.features.inputs] == [1000]
    assert validate_rows(recipe).num_rows == 40
