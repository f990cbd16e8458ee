"""Audio inputs: an array column of samples, encoded as a log-mel spectrogram, or as a checkpoint's network reads it.

A checkpoint's network reads waveforms (1, 1, samples) like wav2vec 2.0, or spectrograms (1, mels, frames) like AST.

Shapes: B rows, T frames, N samples of a window, F frequencies, M mel bands.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Literal

import numpy as np

from bloomery.data_contracts.documents.documents import Document
from bloomery.models.features.checkpoint_audio import apply_steps
from bloomery.models.features.config import Classes, Features
from bloomery.models.features.input_config import AudioInput
from bloomery.models.features.statistics.arrow_arrays import (
    FLOAT32_MAX,
    Rows,
    combine_chunks,
    list_elements,
    require_values,
)
from bloomery.models.features.statistics.column_counts import NumericStatistics, numeric_statistics

_CHUNK_ROWS = 32  # rows per chunk: windows overlap, so frames need several times the memory of samples
_MIN_POWER = 1e-10  # minimum power, so that the logarithm is finite


class FittedAudio(Document):
    """A value of the log-mel spectrogram becomes (value - mean) / scale."""

    kind: Literal["audio"]
    mean: float = 0.0
    scale: float = 1.0


def partial_fit(source: AudioInput, features: Features, rows: Rows) -> tuple[NumericStatistics, ...]:
    """The statistics of all values of the spectrograms; none if a checkpoint has them."""
    if source.normalise == "none" or source.steps is not None:
        return ()
    chunk_statistics = [
        numeric_statistics(log_mel_spectrogram(source, samples)) for _, samples, _ in _clips(source, rows)
    ]
    return (sum(chunk_statistics, numeric_statistics(np.zeros(0))),)


def fit(source: AudioInput, statistics: tuple[NumericStatistics, ...], classes: Classes) -> FittedAudio:
    """Raises DataUnfit if there are no values."""
    if source.preprocessing is not None and source.steps is None:
        raise ValueError("the steps of a checkpoint are set when the recipe is read")
    if not statistics:
        return FittedAudio(kind="audio")
    (stats,) = statistics
    require_values(source.column, stats.moments.count)
    return FittedAudio(kind="audio", mean=stats.moments.mean(), scale=stats.moments.deviation())


def shape(source: AudioInput, fitted: FittedAudio) -> tuple[int, ...]:
    return source.input_shape


def transform_into(
    source: AudioInput, fitted: FittedAudio, rows: Rows, out: np.ndarray, folds: np.ndarray | None
) -> None:
    """Fills `out` float32 (B, 1, M, T), or (B, 1, 1, N) with the waveforms that a checkpoint's network reads."""
    for start, samples, lengths in _clips(source, rows):
        if source.steps is not None:
            for number, (clip, length) in enumerate(zip(samples, lengths, strict=True)):
                apply_steps(source.steps, clip, int(length), out[start + number])
            continue
        scaled = (log_mel_spectrogram(source, samples) - fitted.mean) / fitted.scale
        out[start : start + len(samples), 0] = np.clip(scaled, -FLOAT32_MAX, FLOAT32_MAX)


def _clips(source: AudioInput, rows: Rows) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yields the row number of the first clip, clips padded to float64 (B, samples), and their lengths before that."""
    column = combine_chunks(rows[source.column])
    for start in range(0, len(column), _CHUNK_ROWS):
        clips = column.slice(start, _CHUNK_ROWS)
        values = np.clip(list_elements(clips).astype(np.float64), -FLOAT32_MAX, FLOAT32_MAX)
        lengths = clips.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
        kept_lengths = np.minimum(lengths, source.num_samples)
        starts = np.cumsum(lengths) - lengths
        positions = np.arange(source.num_samples)
        is_inside = positions < kept_lengths[:, None]
        samples = np.zeros((len(clips), source.num_samples))
        samples[is_inside] = values[(starts[:, None] + positions)[is_inside]]
        yield start, samples, kept_lengths


def log_mel_spectrogram(source: AudioInput, samples: np.ndarray) -> np.ndarray:
    """The natural logarithm of the power in each mel band: float64 (B, M, T) for samples float64 (B, num_samples).

    Frames are complete windows without padding, weighted by a periodic Hann window.

    Source: Davis & Mermelstein 1980, "Comparison of parametric representations for monosyllabic word recognition"
    (mel bands of triangular weight over the short-time spectrum).
    """
    power_BTF = power_spectrogram(samples, source.window, source.step)
    bands = _mel_bands(source.sample_rate, source.window, source.num_mels)
    # One band at a time, along the last axis: the order of each sum does not depend on the number of rows.
    energy = [np.sum(power_BTF[..., first:last] * weights, axis=-1) for first, last, weights in bands]
    return np.log(np.maximum(np.stack(energy, axis=1), _MIN_POWER))


def power_spectrogram(samples: np.ndarray, window: int, step: int) -> np.ndarray:
    """The power of each frequency in each frame: |DFT(samples * Hann window)|², float64 (B, T, window // 2 + 1)."""
    hann_N = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    frames_BTN = np.lib.stride_tricks.sliding_window_view(samples, window, axis=1)[:, ::step]
    transformed = np.fft.rfft(frames_BTN * hann_N, axis=-1)
    return transformed.real**2 + transformed.imag**2


@cache
def _mel_bands(sample_rate: int, window: int, num_mels: int) -> list[tuple[int, int, np.ndarray]]:
    """The first frequency, the end (exclusive) and the weights of each mel band.

    Bands are triangles of equal width on the scale 2595 * log10(1 + f / 700), f in Hz, from the centre of one neighbour
    to that of the other. A band that contains no frequency of the spectrum takes the nearest one.

    Source: O'Shaughnessy 1987, "Speech Communication: Human and Machine" (the scale).
    """
    top = 2595 * np.log10(1 + sample_rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, num_mels + 2) / 2595) - 1)
    frequencies = np.arange(window // 2 + 1) * sample_rate / window
    bands = []
    for low, centre, high in zip(edges, edges[1:], edges[2:], strict=False):
        weights = np.minimum((frequencies - low) / (centre - low), (high - frequencies) / (high - centre))
        covered_frequencies = np.flatnonzero(weights > 0)
        if covered_frequencies.size == 0:
            nearest = int(np.abs(frequencies - centre).argmin())
            bands.append((nearest, nearest + 1, np.ones(1)))
            continue
        first, last = int(covered_frequencies[0]), int(covered_frequencies[-1]) + 1
        bands.append((first, last, weights[first:last]))
    return bands
