"""A checkpoint's audio preprocessing gives the values of `transformers`, and what it cannot do is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bloomery.data_contracts.errors import BloomeryError
from bloomery.models.features.config import Features
from bloomery.models.features.encoder import Encoder, encode, fit, partial_statistics
from bloomery.models.features.input_config import AudioInput
from bloomery.models.networks.pretrained_config import Pretrained
from bloomery.tasks.checkpoints.audio_steps import read_audio_steps
from bloomery.tasks.checkpoints.input_checkpoints import add_input_checkpoints
from bloomery.tasks.checkpoints.resolve import resolve_checkpoint
from bloomery.tasks.train.user_code import bundle_user_code
from tests.checkpoints import CheckpointFolder, write_json
from tests.examples import examples

pytestmark = pytest.mark.usefixtures("home")
WAVEFORM, SPECTROGRAM = "Wav2Vec2FeatureExtractor", "ASTFeatureExtractor"
WHISPER = "WhisperFeatureExtractor"


@pytest.fixture(scope="module")
def folder(tiny_wav2vec2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("audio") / "copy"
    shutil.copytree(tiny_wav2vec2, path)
    return path


def make_source(rate: int, seconds: float) -> AudioInput:
    return AudioInput(kind="audio", column="call", sample_rate=rate, duration_s=seconds, preprocessing="checkpoint")


def make_features(source: AudioInput) -> Features:
    return Features(key="id", label="kind", inputs=(source,))


def make_rows(clips: list[np.ndarray]) -> pa.Table:
    samples = pa.array([clip.tolist() for clip in clips], pa.list_(pa.float32()))
    return pa.table({"id": range(len(clips)), "call": samples, "kind": (["a", "b"] * len(clips))[: len(clips)]})


def make_clips(lengths: list[int], seed: int) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [np.float32(random.normal(0.1, 0.3, length) * random.choice([0, 1e-3, 1])) for length in lengths]


def fit_encoder(source: AudioInput, rows: pa.Table) -> Encoder:
    features = make_features(source)
    encoder = fit(features, next(partial_statistics(features, rows.to_batches())).column(0).to_pylist())
    return Encoder.model_validate_json(encoder.model_dump_json())


def read_steps(folder: Path, options: dict[str, Any], source: AudioInput, config: dict[str, Any] | None = None) -> Any:
    write_json(folder / "preprocessor_config.json", options)
    return read_audio_steps(resolve_checkpoint(str(folder), folder), config or {}, source)


@settings(max_examples=examples(80))
@given(
    lengths=st.lists(st.integers(1, 60), min_size=2, max_size=4),
    is_normalised=st.booleans(),
    has_mask=st.booleans(),
    padding=st.sampled_from([0.0, -1.0]),
    seed=st.integers(0, 99),
)
def test_waveforms_are_those_of_transformers(
    folder: Path, lengths: list[int], is_normalised: bool, has_mask: bool, padding: float, seed: int
) -> None:
    from transformers import Wav2Vec2FeatureExtractor

    options = {"sampling_rate": 100, "do_normalize": is_normalised, "return_attention_mask": has_mask}
    options |= {"padding_value": padding}
    source, clips = make_source(100, 0.4), make_clips(lengths, seed)
    source = source.model_copy(
        update={"steps": read_steps(folder, {"feature_extractor_type": WAVEFORM, **options}, source)}
    )
    rows = make_rows(clips)
    encoded = encode(fit_encoder(source, rows), rows)
    assert encoded.shape == (len(clips), 1, 1, 40)
    extract = Wav2Vec2FeatureExtractor(**options)
    limits = {"padding": "max_length", "max_length": 40, "truncation": True, "sampling_rate": 100}
    expected = np.stack([extract(clip, return_tensors="np", **limits)["input_values"][0] for clip in clips])
    np.testing.assert_allclose(encoded[:, 0, 0], expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=examples(40))
@given(
    lengths=st.lists(st.integers(400, 3000), min_size=2, max_size=3),
    num_mels=st.sampled_from([8, 16, 128]),
    frames=st.integers(1, 20),
    is_normalised=st.booleans(),
    seed=st.integers(0, 99),
)
@pytest.mark.filterwarnings("ignore:At least one mel filter")
def test_spectrograms_are_those_of_transformers(
    folder: Path, lengths: list[int], num_mels: int, frames: int, is_normalised: bool, seed: int
) -> None:
    from transformers import ASTFeatureExtractor

    options = {"num_mel_bins": num_mels, "max_length": frames, "do_normalize": is_normalised}
    source, clips = make_source(16_000, 0.25), make_clips(lengths, seed)
    source = source.model_copy(
        update={"steps": read_steps(folder, {"feature_extractor_type": SPECTROGRAM, **options}, source)}
    )
    rows = make_rows(clips)
    encoder = fit_encoder(source, rows)
    encoded = encode(encoder, rows)
    assert encoded.shape == (len(clips), 1, num_mels, frames)
    extract = ASTFeatureExtractor(**options)
    expected = np.stack([extract(clip, sampling_rate=16_000, return_tensors="np")["input_values"][0] for clip in clips])
    np.testing.assert_allclose(encoded[:, 0].transpose(0, 2, 1), expected, rtol=1e-3, atol=2e-3)
    for number in range(len(clips)):  # as the endpoint encodes
        np.testing.assert_array_equal(encode(encoder, rows.slice(number, 1))[0], encoded[number])


@settings(max_examples=examples(30))
@given(
    lengths=st.lists(st.integers(0, 3000), min_size=2, max_size=3),
    num_mels=st.sampled_from([8, 80]),
    rate=st.sampled_from([1000, 16_000]),
    sizes=st.sampled_from([{}, {"n_fft": 64, "hop_length": 25}]),
    padding=st.sampled_from([0.0, 0.25]),
    seed=st.integers(0, 99),
)
@pytest.mark.filterwarnings("ignore:At least one mel filter")
def test_spectrograms_of_whisper_are_those_of_transformers(
    folder: Path, lengths: list[int], num_mels: int, rate: int, sizes: dict[str, int], padding: float, seed: int
) -> None:
    from transformers import WhisperFeatureExtractor

    options = {"feature_size": num_mels, "sampling_rate": rate, "chunk_length": 1, "padding_value": padding, **sizes}
    source, clips = make_source(rate, 2), make_clips(lengths, seed)
    source = source.model_copy(
        update={"steps": read_steps(folder, {"feature_extractor_type": WHISPER, **options}, source)}
    )
    rows = make_rows(clips)
    encoder = fit_encoder(source, rows)
    encoded = encode(encoder, rows)
    assert encoded.shape == (len(clips), 1, num_mels, rate // sizes.get("hop_length", 160))
    extract = WhisperFeatureExtractor(**options)
    expected = [extract(clip, sampling_rate=rate, return_tensors="np")["input_features"][0] for clip in clips]
    np.testing.assert_allclose(encoded[:, 0], np.stack(expected), rtol=1e-3, atol=2e-3)
    for number in range(len(clips)):  # as the endpoint encodes
        np.testing.assert_array_equal(encode(encoder, rows.slice(number, 1))[0], encoded[number])


def test_a_clip_shorter_than_a_frame_is_silence(folder: Path) -> None:
    source = make_source(16_000, 0.25)
    options = {"feature_extractor_type": SPECTROGRAM, "num_mel_bins": 4, "max_length": 3, "do_normalize": False}
    source = source.model_copy(update={"steps": read_steps(folder, options, source)})
    rows = make_rows([np.ones(399, np.float32), np.zeros(0, np.float32)])
    assert not encode(fit_encoder(source, rows), rows).any()


@pytest.mark.parametrize(
    ("name", "rate", "shape"),
    [("wav2vec2", 1000, (1, 1, 500)), ("ast", 16_000, (1, 16, 24)), ("whisper", 800, (1, 16, 24))],
)
def test_a_recipe_gets_the_steps_of_its_network(
    checkpoint_folder: CheckpointFolder, tmp_path: Path, name: str, rate: int, shape: tuple[int, ...]
) -> None:
    model = bundle_user_code(Pretrained(kind="pretrained", checkpoint=str(checkpoint_folder(name))), tmp_path)
    (source,) = add_input_checkpoints(make_features(make_source(rate, 0.5)), model).inputs
    assert isinstance(source, AudioInput)
    assert source.input_shape == shape
    assert not {"window_s", "step_s", "num_mels", "normalise"} & set(source.model_dump())
    assert Features.model_validate_json(make_features(source).model_dump_json()).inputs == (source,)


@pytest.mark.parametrize(
    ("options", "config", "message"),
    [
        ({"feature_extractor_type": "ClapFeatureExtractor"}, {}, "ClapFeatureExtractor, which is not supported"),
        ({"feature_extractor_type": WHISPER, "dither": 0.1}, {}, "dither adds noise to each clip"),
        ({"feature_extractor_type": WHISPER, "hop_length": 0}, {}, "hop_length are whole numbers"),
        (
            {"feature_extractor_type": WHISPER, "chunk_length": 1, "n_fft": 20_000},
            {},
            "n_fft is odd, or longer than a clip",
        ),
        (
            {"feature_extractor_type": WHISPER, "sampling_rate": 8000},
            {"max_source_positions": 1500, "num_mel_bins": 128},
            "gives 1500 frames of 80 mel bands, but the network reads 3000 of 128(.|\n)*`chunk_length`",
        ),
        ({}, {}, "an unnamed extractor, which is not supported"),
        ({"feature_extractor_type": WAVEFORM}, {}, "has 8000 samples per second(.|\n)*16000(.|\n)*resample: true"),
        ({"feature_extractor_type": WAVEFORM, "sampling_rate": "x"}, {}, "invalid value"),
        ({"feature_extractor_type": SPECTROGRAM, "std": 0}, {}, "invalid value"),
        (
            {"feature_extractor_type": SPECTROGRAM, "sampling_rate": 8000, "max_length": 9},
            {"max_length": 8, "num_mel_bins": 128},
            "gives 9 frames of 128 mel bands, but the network reads 8 of 128",
        ),
    ],
)
def test_other_preprocessing_is_refused(
    folder: Path, options: dict[str, Any], config: dict[str, Any], message: str
) -> None:
    with pytest.raises(BloomeryError, match=message):
        read_steps(folder, options, make_source(8000, 1), config)


def test_options_that_the_checkpoint_replaces_are_refused() -> None:
    document = {"kind": "audio", "column": "call", "sample_rate": 8, "duration_s": 1, "preprocessing": "checkpoint"}
    for option in ({"num_mels": 4}, {"window_s": 0.1}, {"step_s": 0.1}, {"normalise": "none"}):
        with pytest.raises(ValidationError, match="has its own steps"):
            AudioInput.model_validate({**document, **option})
