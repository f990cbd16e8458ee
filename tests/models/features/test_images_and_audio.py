"""Images, audio and text: equal to other libraries, and equal for single rows and batches."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import wavfile
from scipy.signal import stft
from sklearn.linear_model import LogisticRegression

from bloomery.data_contracts.errors import DataUnfit
from bloomery.models.features.config import Features
from bloomery.models.features.encoder import (
    STATISTICS,
    Encoder,
    encode,
    encode_batches,
    encode_rows,
    fit,
    partial_statistics,
    read_encoder,
)
from bloomery.models.features.input_config import AudioInput
from bloomery.models.features.kinds.audio import log_mel_spectrogram, power_spectrogram
from bloomery.models.features.kinds.image import resize
from tests.examples import examples

KINDS = [pa.list_(pa.uint8()), pa.list_(pa.int64()), pa.large_list(pa.uint16()), pa.list_(pa.uint8(), 12)]
PIXELS = st.lists(st.lists(st.integers(0, 255), min_size=12, max_size=12), min_size=2, max_size=8)


def fit_encoder(source: dict[str, Any], column: pa.Array, size: int = 10**6) -> tuple[Encoder, pa.Table]:
    features = Features.model_validate({"key": "id", "label": "y", "inputs": [source]})
    table = pa.table({"id": range(len(column)), "y": [row % 2 for row in range(len(column))], "a": column})
    batches = table.to_batches(max_chunksize=size)
    return fit(features, [summary[STATISTICS][0].as_py() for summary in partial_statistics(features, batches)]), table


def image(**settings: Any) -> dict[str, Any]:
    return {"kind": "image", "column": "a", "shape": [3, 2, 2], **settings}


@settings(deadline=None, max_examples=examples(40))
@given(rows=PIXELS, kind=st.sampled_from(KINDS), normalise=st.sampled_from(["standard", "per_channel", "unit", "none"]))
def test_pixels_are_scaled_equally_for_every_type_and_batch(rows, kind, normalise):
    encoder, table = fit_encoder(image(normalise=normalise), pa.array(rows, kind))
    (first, *_) = encoder.fitted
    pixels = np.array(rows, np.float32).reshape(-1, 3, 2, 2)
    mean, scale = (np.array(values, np.float32)[:, None, None] for values in (first.mean, first.scale))
    x = encode(encoder, table)
    assert np.array_equal(x, (pixels - mean) / scale)
    assert encode(encoder, table.slice(1, 1)).tobytes() == x[1:2].tobytes()
    assert fit_encoder(image(normalise=normalise), pa.array(rows, KINDS[0]), size=1)[0] == encoder


def test_batches_of_wide_rows_are_divided(monkeypatch):
    encoder, table = fit_encoder(image(), pa.array([[number] * 12 for number in range(9)], KINDS[0]))
    (batch,) = table.to_batches()
    expected = encode_rows(encoder, batch)
    assert [part.num_rows for part in encode_batches(encoder, [batch])] == [9]
    monkeypatch.setattr("bloomery.models.features.encoder._BATCH_VALUES", 4 * 12)
    parts = list(encode_batches(encoder, [batch]))
    assert [part.num_rows for part in parts] == [4, 4, 1]
    assert pa.Table.from_batches(parts).combine_chunks().to_batches() == [expected]


def test_the_training_split_has_mean_zero_and_deviation_one(digits, encoder):
    x = encode(encoder, digits).astype(np.float64)
    assert (x.mean(), x.std()) == pytest.approx((0, 1), abs=1e-5)
    assert x.shape == (1797, 1, 8, 8)


def test_every_channel_has_mean_zero_and_deviation_one():
    pixels = np.random.default_rng(0).integers(0, 256, (50, 3, 4)) // np.array([1, 2, 3])[:, None]
    encoder, table = fit_encoder(image(normalise="per_channel"), pa.array(list(pixels.reshape(50, 12)), KINDS[0]))
    x = encode(encoder, table).astype(np.float64)
    assert x.mean(axis=(0, 2, 3)) == pytest.approx([0] * 3, abs=1e-6)
    assert x.std(axis=(0, 2, 3)) == pytest.approx([1] * 3, abs=1e-6)


@pytest.mark.parametrize("size", [(28, 28), (14, 14), (13, 40), (56, 7), (1, 1)], ids=str)
def test_images_are_resized_like_torch_does(size):
    x = np.random.default_rng(0).integers(0, 256, (2, 3, 28, 28)).astype(np.uint8)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(x.astype(np.float64)), size=size, mode="bilinear", antialias=True, align_corners=False
    )
    assert np.abs(resize(x, *size) - expected.numpy()).max() < 1e-4


@pytest.mark.parametrize("kind", [*KINDS[:3], pa.list_(pa.float64())], ids=str)
def test_resized_images_are_encoded_equally_one_by_one_and_together(kind):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12))
    encoder, table = fit_encoder(image(resize=[3, 5]), pa.array(pixels.tolist(), kind))
    x = encode(encoder, table)
    assert encoder.input_shape == (3, 3, 5)
    assert b"".join(encode(encoder, table.slice(row, 1)).tobytes() for row in range(9)) == x.tobytes()


def test_a_wrong_number_of_pixels_is_refused():
    with pytest.raises(DataUnfit, match="column a has 22 values in 2 rows"):
        fit_encoder(image(), pa.array([[1] * 11] * 2))


def audio(**settings: Any) -> AudioInput:
    return AudioInput.model_validate(
        {"kind": "audio", "column": "a", "sample_rate": 8000, "duration_s": 0.5, **settings}
    )


def test_the_spectrogram_equals_scipy():
    samples = np.random.default_rng(0).normal(size=(3, 4000))
    _, _, expected = stft(samples, window="hann", nperseg=256, noverlap=128, boundary=None, padded=False, scaling="psd")
    power = power_spectrogram(samples, 256, 128)
    ratio = power / np.abs(expected.transpose(0, 2, 1)) ** 2
    assert ratio.std() / ratio.mean() < 1e-6


def test_a_tone_is_loudest_in_its_mel_band():
    source = audio(num_mels=20)
    tone = np.sin(2 * np.pi * 1000 * np.arange(4000) / 8000)[None]
    mel = 2595 * np.log10(1 + np.array([1000, 4000]) / 700)
    loudest = log_mel_spectrogram(source, tone)[0].mean(axis=1).argmax()
    assert abs(loudest + 1 - 21 * mel[0] / mel[1]) <= 1


def test_clips_of_any_length_are_encoded_equally_one_by_one_and_together():
    rng = np.random.default_rng(0)
    clips = pa.array([rng.normal(size=length) for length in (0, 10, 4000, 9000, *[3000] * 40)], pa.list_(pa.float32()))
    source = audio().model_dump()
    encoder, table = fit_encoder(source, clips)
    x = encode(encoder, table)
    assert x.shape[1:] == encoder.input_shape == audio().input_shape == (1, 40, 30)
    assert (x.mean(), x.std()) == pytest.approx((0, 1), abs=1e-3)
    assert b"".join(encode(encoder, table.slice(row, 1)).tobytes() for row in range(len(table))) == x.tobytes()
    assert fit_encoder(source, clips, size=5)[0] == encoder


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:lbfgs failed to converge")
def test_a_linear_map_classifies_spoken_digits(datasets: Path):
    with zipfile.ZipFile(datasets / "fsdd" / "fsdd.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".wav"))
        waves = [wavfile.read(io.BytesIO(archive.read(name)))[1] / 2**15 for name in names]
    source = audio(duration_s=0.8, num_mels=32, step_s=0.032).model_dump()
    encoder, table = fit_encoder(source, pa.array(waves, pa.list_(pa.float32())))
    x = encode(encoder, table).reshape(len(names), -1)
    digit, _, index = zip(*(Path(name).stem.split("_") for name in names), strict=True)
    is_held_out = np.array([int(number) < 5 for number in index])
    labels = np.array(digit)
    model = LogisticRegression(max_iter=200).fit(x[~is_held_out], labels[~is_held_out])
    assert model.score(x[is_held_out], labels[is_held_out]) > 0.93


TEXTS = ["the cat sat", "The CAT ran", "a cat, [PAD] ate", "ein Käse für 3 €", "", "the the the the the the the the"]


def text(**settings: Any) -> dict[str, Any]:
    return {"kind": "text", "column": "a", "length": 6, "vocabulary_size": 270, **settings}


def test_a_text_becomes_its_token_ids():
    encoder, table = fit_encoder(text(length=40), pa.array(TEXTS))
    x = encode(encoder, table)
    assert x.shape == (6, 40)
    assert not x[4].any()
    lengths = (x > 0).sum(axis=1)
    assert lengths[0] < len(TEXTS[0])
    assert (x[2][: lengths[2]] > 0).all()  # the text "[PAD]" is not encoded as padding
    tokenizer = __import__("tokenizers").Tokenizer.from_str(encoder.fitted[0].tokenizer)
    vocabulary = tokenizer.model
    assert vocabulary.id_to_token(0) == "[PAD]"
    assert x.max() < 270
    assert (encoder.layout.kind, encoder.layout.shape, encoder.layout.num_tokens) == ("tokens", (40,), 270)
    assert tokenizer.get_vocab_size() == 270


@settings(deadline=None, max_examples=examples(20))
@given(texts=st.lists(st.none() | st.text(max_size=30), min_size=2, max_size=8), order=st.randoms())
def test_byte_pairs_are_independent_of_order_and_batches(texts, order):
    shuffled = order.sample(texts, len(texts))
    encoder, table = fit_encoder(text(missing="empty"), pa.array([*texts, "one word"], pa.string()))
    assert fit_encoder(text(missing="empty"), pa.array(["one word", *shuffled], pa.string()), size=1)[0] == encoder
    x = encode(encoder, table)
    assert b"".join(encode(encoder, table.slice(row, 1)).tobytes() for row in range(len(table))) == x.tobytes()


def test_words_are_numbered_by_frequency_and_others_are_unknown():
    encoder, _ = fit_encoder(text(tokenizer="words", vocabulary_size=5), pa.array(["b a, b", "A b [PAD]", "c"]))
    assert encoder.layout.num_tokens == 5
    table = pa.table({"a": ["b A ,", "zebra [PAD] [UNK]", "a-b", "", "b b b b b b b"]})
    expected = [[2, 3, 4, 0, 0, 0], [1, 1, 1, 1, 1, 1], [3, 1, 2, 0, 0, 0], [0] * 6, [2] * 6]
    assert encode(encoder, table).tolist() == expected


@settings(deadline=None, max_examples=examples(20))
@given(texts=st.lists(st.none() | st.text(max_size=30), min_size=2, max_size=8), order=st.randoms())
def test_words_are_independent_of_order_and_batches(texts, order):
    source = text(tokenizer="words", vocabulary_size=9, missing="empty")
    shuffled = order.sample(texts, len(texts))
    encoder, table = fit_encoder(source, pa.array([*texts, "one word"], pa.string()))
    assert fit_encoder(source, pa.array(["one word", *shuffled], pa.string()), size=1)[0] == encoder
    x = encode(encoder, table)
    assert x.max() < (encoder.layout.num_tokens or 0) <= 9
    assert b"".join(encode(encoder, table.slice(row, 1)).tobytes() for row in range(len(table))) == x.tobytes()


def test_a_byte_pair_vocabulary_smaller_than_the_bytes_is_refused():
    with pytest.raises(ValueError, match="at least 257"):
        fit_encoder(text(vocabulary_size=256), pa.array(TEXTS))


def test_a_fitted_text_round_trips_through_its_file(tmp_path: Path):
    encoder, table = fit_encoder(text(), pa.array(TEXTS))
    (tmp_path / "encoder.json").write_text(encoder.model_dump_json(indent=1), encoding="utf-8")
    assert encode(read_encoder(tmp_path / "encoder.json"), table).tobytes() == encode(encoder, table).tobytes()
