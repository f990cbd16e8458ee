"""A checkpoint's image preprocessing gives the values of `transformers`, and what it cannot do is refused."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bloomery.data_contracts.errors import BloomeryError, DataUnfit, RecipeInvalid
from bloomery.models.features.config import Features
from bloomery.models.features.encoder import Encoder, encode, fit, partial_statistics
from bloomery.models.features.input_config import ImageInput
from bloomery.models.networks.pretrained_config import Pretrained
from bloomery.tasks.checkpoints.image_steps import _DEFAULTS, read_image_steps
from bloomery.tasks.checkpoints.input_checkpoints import add_input_checkpoints
from bloomery.tasks.checkpoints.resolve import resolve_checkpoint
from bloomery.tasks.train.user_code import bundle_user_code
from tests.checkpoints import write_json
from tests.examples import examples

pytestmark = pytest.mark.usefixtures("home")
RGB = {"num_channels": 3}


def make_source(shape: tuple[int, int, int], **options: Any) -> ImageInput:
    return ImageInput(kind="image", column="photo", shape=shape, preprocessing="checkpoint", **options)


def make_features(source: ImageInput) -> Features:
    return Features(key="id", label="kind", inputs=(source,))


def make_rows(x_BCHW: np.ndarray) -> pa.Table:
    pixels = pa.array(x_BCHW.reshape(len(x_BCHW), -1).tolist(), pa.list_(pa.uint8()))
    return pa.table({"id": range(len(x_BCHW)), "photo": pixels, "kind": (["a", "b"] * len(x_BCHW))[: len(x_BCHW)]})


def fit_encoder(source: ImageInput, rows: pa.Table) -> Encoder:
    features = make_features(source)
    encoder = fit(features, next(partial_statistics(features, rows.to_batches())).column(0).to_pylist())
    return Encoder.model_validate_json(encoder.model_dump_json())


def read_steps(folder: Path, options: dict[str, Any], source: ImageInput, config: dict[str, Any] | None = None) -> Any:
    write_json(folder / "preprocessor_config.json", options)
    checkpoint = resolve_checkpoint(str(folder), folder)
    return read_image_steps(checkpoint, RGB if config is None else config, source)


@pytest.fixture(scope="module")
def folder(tiny_vit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vit") / "copy"
    shutil.copytree(tiny_vit, path)
    return path


SIDES = st.integers(1, 24)
RECTANGLES = st.fixed_dictionaries({"height": SIDES, "width": SIDES})
SIZES = st.one_of(RECTANGLES, st.fixed_dictionaries({"shortest_edge": SIDES}))
OPTIONS = st.fixed_dictionaries(
    {"size": SIZES},
    optional={
        "resample": st.integers(0, 5),
        "do_resize": st.booleans(),
        "do_center_crop": st.booleans(),
        "crop_size": RECTANGLES,
        "do_rescale": st.booleans(),
        "rescale_factor": st.sampled_from([1 / 255, 1 / 127.5]),
        "do_normalize": st.booleans(),
        "image_mean": st.just([0.1, 0.5, 0.9]),
        "image_std": st.just([0.2, 0.3, 0.4]),
    },
)


@pytest.mark.parametrize("name", ["ViT", "CLIP", "DeiT", "MobileNetV2"])
@settings(max_examples=examples(80))
@given(options=OPTIONS, height=SIDES, width=SIDES, is_grey=st.booleans(), seed=st.integers(0, 99))
def test_values_are_those_of_transformers(
    folder: Path, name: str, options: dict[str, Any], height: int, width: int, is_grey: bool, seed: int
) -> None:
    if options.get("do_center_crop") and "crop_size" not in options:
        options = {**options, "crop_size": {"height": 8, "width": 9}}  # without it, ViT's own processor fails too
    compare(folder, name, options, (1 if is_grey else 3, height, width), seed)


@pytest.mark.parametrize("name", _DEFAULTS)
@pytest.mark.parametrize("size", [{}, {"size": 20}, {"size": {"shortest_edge": 390}}], ids=["default", "20", "390"])
def test_defaults_are_those_of_transformers(folder: Path, name: str, size: dict[str, Any]) -> None:
    compare(folder, name, size, (3, 30, 40), seed=1)


def compare(folder: Path, name: str, options: dict[str, Any], shape: tuple[int, int, int], seed: int) -> None:
    """Compares two images with what the processor of `transformers` makes of each as RGB."""
    import transformers
    from PIL import Image

    x_BCHW = np.random.default_rng(seed).integers(0, 256, (2, *shape), np.uint8)
    document = {"image_processor_type": f"{name}ImageProcessor", **options}
    source = make_source(shape)
    source = source.model_copy(update={"steps": read_steps(folder, document, source)})
    rows = make_rows(x_BCHW)
    encoder = fit_encoder(source, rows)
    encoded = encode(encoder, rows)
    processor = getattr(transformers, f"{name}ImageProcessorPil")(**options)
    colours = np.moveaxis(np.broadcast_to(x_BCHW, (2, 3, *shape[1:])), 1, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        images = [processor(Image.fromarray(pixels), return_tensors="np")["pixel_values"][0] for pixels in colours]
    np.testing.assert_allclose(encoded, np.stack(images), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(encode(encoder, rows.slice(1, 1)), encoded[1:])
    assert encoder.layout.shape == encoded.shape[1:]


@pytest.mark.parametrize("model_type", ["dinov2", "dinov2_with_registers"])
def test_a_network_for_any_size_reads_what_the_steps_give(folder: Path, model_type: str) -> None:
    config = {**RGB, "model_type": model_type, "image_size": 518, "patch_size": 14}
    steps = read_steps(folder, {"size": {"shortest_edge": 32}}, make_source((3, 40, 40)), config)
    assert steps.output_shape((3, 40, 40)) == (3, 224, 224)


@pytest.mark.parametrize("model_type", ["convnext", "convnextv2"])
def test_stages_of_convolutions_read_any_size(folder: Path, model_type: str) -> None:
    config = {**RGB, "model_type": model_type, "depths": [1], "image_size": 224, "patch_size": 4}
    options = {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}}
    steps = read_steps(folder, options, make_source((3, 40, 40)), config)
    assert steps.output_shape((3, 40, 40)) == (3, 384, 384)
    resized = read_steps(folder, options, make_source((3, 40, 40), resize=(48, 64)), config)
    assert resized.output_shape((3, 40, 40)) == (3, 48, 64)


def test_a_size_of_the_recipe_replaces_that_of_the_checkpoint(folder: Path) -> None:
    config, options = {**RGB, "model_type": "resnet", "depths": [1]}, {"size": {"shortest_edge": 32}}
    options |= {"image_processor_type": "ConvNextImageProcessor"}
    source = make_source((1, 8, 8), resize=(12, 10))
    own, resized = (read_steps(folder, options, image, config) for image in (make_source((1, 8, 8)), source))
    assert (own.output_shape((1, 8, 8)), resized.output_shape((1, 8, 8))) == ((3, 32, 32), (3, 12, 10))
    assert (resized.factor, resized.mean, resized.resample) == (own.factor, own.mean, own.resample)
    assert ImageInput.model_validate_json(source.model_dump_json()) == source
    rows = make_rows(np.arange(128, dtype=np.uint8).reshape(2, 1, 8, 8))
    features = make_features(source.model_copy(update={"steps": resized}))
    encoder = fit(features, next(partial_statistics(features, rows.to_batches())).column(0).to_pylist())
    assert encode(encoder, rows).shape == (2, 3, 12, 10)
    vit = {**RGB, "model_type": "vit", "image_size": 16, "patch_size": 4}
    with pytest.raises(RecipeInvalid, match="`resize` gives images of 12x10 pixels, but the network reads 16x16"):
        read_steps(folder, {"size": {"height": 16, "width": 16}}, source, vit)


def test_a_recipe_gets_the_steps_of_its_network(folder: Path, tiny_vit: Path) -> None:
    shutil.copy(tiny_vit / "preprocessor_config.json", folder / "preprocessor_config.json")
    model = bundle_user_code(Pretrained(kind="pretrained", checkpoint=str(folder)), folder)
    (source,) = add_input_checkpoints(make_features(make_source((1, 40, 40))), model).inputs
    assert isinstance(source, ImageInput)
    assert source.input_shape == (3, 16, 16)
    assert not {"resize", "normalise", "brightest"} & set(source.model_dump())
    stored = Features.model_validate_json(make_features(source).model_dump_json())
    assert stored.inputs == (source,)


@pytest.mark.parametrize(
    ("options", "config", "message"),
    [
        ({"image_processor_type": "MobileViTImageProcessor"}, RGB, "is one of MobileViT, which is not supported"),
        ({"image_processor_type": "MineProcessor", "auto_map": {"AutoImageProcessor": "a.B"}}, RGB, "has auto_map"),
        ({}, RGB, "is one of an unnamed processor"),
        ({"image_processor_type": "ViTImageProcessor", "do_pad": True}, RGB, "has do_pad"),
        ({"image_processor_type": "ViTImageProcessor", "size": {"longest_edge": 3}}, RGB, "size with longest_edge"),
        ({"image_processor_type": "ViTImageProcessor", "size": -1}, RGB, "invalid value"),
        ({"image_processor_type": "ViTImageProcessor", "do_center_crop": True}, RGB, "without the height and width"),
        ({"image_processor_type": "ViTImageProcessor", "resample": 9}, RGB, "invalid value"),
        ({"image_processor_type": "ViTImageProcessor", "image_mean": [1]}, RGB, "1 values for 3 channels"),
        (
            {"image_processor_type": "ViTImageProcessor"},
            {"num_channels": 1},
            "3 channels, but the network reads 1|3 values",
        ),
        (
            {"image_processor_type": "ViTImageProcessor", "size": 20},
            {"model_type": "vit", "image_size": 16, "patch_size": 4},
            "gives images of 20x20 pixels, but the network reads 16x16",
        ),
    ],
)
def test_other_preprocessing_is_refused(
    folder: Path, options: dict[str, Any], config: dict[str, Any], message: str
) -> None:
    with pytest.raises(BloomeryError, match=message):
        read_steps(folder, options, make_source((3, 8, 8)), config)


def test_a_checkpoint_without_the_file_is_refused(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink(missing_ok=True)
    checkpoint = resolve_checkpoint(str(folder), folder)
    with pytest.raises(BloomeryError, match=r"has no preprocessor_config\.json"):
        read_image_steps(checkpoint, RGB, make_source((3, 8, 8)))


def test_pixels_beyond_bytes_are_refused(folder: Path) -> None:
    source = make_source((3, 2, 2))
    steps = read_steps(folder, {"image_processor_type": "ViTImageProcessor", "size": 2}, source)
    source = source.model_copy(update={"steps": steps})
    encoder = fit_encoder(source, make_rows(np.zeros((2, 3, 2, 2), np.uint8)))
    wide = [json.loads("[0,1,2,3,4,5,6,7,8,9,10,255]")]
    assert encode(encoder, pa.table({"photo": pa.array(wide, pa.list_(pa.int64()))})).shape == (1, 3, 2, 2)
    for value, kind in ((256, pa.int64()), (-1, pa.int32()), (0.5, pa.float64())):
        rows = pa.table({"photo": pa.array([[value, *wide[0][1:]]], pa.list_(kind))})
        with pytest.raises(DataUnfit, match="integers from 0 to 255"):
            encode(encoder, rows)


@pytest.mark.parametrize(
    "options",
    [{"resize": (4, 4), "normalise": "none"}, {"normalise": "unit"}, {"brightest": 1.0}, {"shape": (2, 4, 4)}],
    ids=str,
)
def test_options_that_the_checkpoint_replaces_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="preprocessing checkpoint"):
        ImageInput.model_validate(
            {"kind": "image", "column": "photo", "shape": (3, 4, 4), "preprocessing": "checkpoint", **options}
        )
