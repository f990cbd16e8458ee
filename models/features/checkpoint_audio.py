"""The audio preprocessing of a pretrained checkpoint, as the feature extractors of `transformers` do it.

Shapes: N samples of a clip, T frames, F frequencies.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from bloomery.data_contracts.documents.documents import Document, is_unset

_WINDOW, _STEP, _TRANSFORM = 400, 160, 512  # samples of the spectrogram's frames, as Kaldi has them for 16 kHz
_EMPHASIS = 0.97
_MIN_ENERGY = 1.192092955078125e-07
_MIN_POWER, _RANGE = 1e-10, 8.0  # of Whisper: the least energy, and powers of ten below the highest one of a clip
_MAX_HERTZ = 8000.0  # of Whisper's bands, at any sample rate


class AudioSteps(Document):
    """What preprocessor_config.json states, for networks that read waveforms (wav2vec 2.0) or spectrograms.

    `spectrogram` is that of AST, as Kaldi computes it; `whisper` that of Whisper, which pads each clip with silence.
    """

    kind: Literal["waveform", "spectrogram", "whisper"]
    sample_rate: Annotated[int, Field(ge=1)]
    normalises: bool
    ignores_padding: Annotated[bool, Field(description="waveform alone: padding has no part in mean and variance")] = (
        True
    )
    padding: Annotated[float, Field(description="the value after the end of a clip, but of spectrogram")] = 0.0
    num_mels: Annotated[int, Field(ge=1, le=512, description="not of waveform")] = 1
    frames: Annotated[int, Field(ge=1, le=100_000, description="not of waveform")] = 1
    mean: Annotated[float, Field(description="spectrogram alone")] = 0.0
    deviation: Annotated[float, Field(gt=0, description="spectrogram alone")] = 1.0
    window: Annotated[
        int | None, Field(ge=2, le=65_536, exclude_if=is_unset, description="whisper alone: samples of a frame")
    ] = None
    step: Annotated[
        int | None, Field(ge=1, exclude_if=is_unset, description="whisper alone: samples between frames")
    ] = None
    samples: Annotated[int | None, Field(ge=1, exclude_if=is_unset, description="whisper alone: of a padded clip")] = (
        None
    )

    @property
    def frame_seconds(self) -> tuple[float, float]:
        """From the start of a frame to that of the next, and the length of a frame; a waveform has one per sample."""
        step, length = (1, 1) if self.kind == "waveform" else (self.step or _STEP, self.window or _WINDOW)
        return step / self.sample_rate, length / self.sample_rate

    def output_shape(self, num_samples: int) -> tuple[int, int, int]:
        """The shape of an encoded clip: (1, 1, samples) or (1, mels, frames)."""
        return (1, 1, num_samples) if self.kind == "waveform" else (1, self.num_mels, self.frames)


def apply_steps(steps: AudioSteps, samples: np.ndarray, length: int, out: np.ndarray) -> None:
    """Fills `out` float32, of the steps' output shape, from one clip (N,) whose samples after `length` are padding."""
    clip = samples.astype(np.float32)
    if steps.kind == "spectrogram":
        out[0] = _mel_frames(steps, clip[:length]).T
        return
    if steps.kind == "whisper":
        out[0] = _whisper_frames(steps, clip[:length])
        return
    clip[length:] = steps.padding
    if steps.normalises:
        heard = clip[: max(length, 1)] if steps.ignores_padding else clip
        clip = (clip - heard.mean()) / np.sqrt(heard.var() + 1e-7)
        if steps.ignores_padding:
            clip[length:] = steps.padding
    out[0, 0] = clip


def _mel_frames(steps: AudioSteps, clip: np.ndarray) -> np.ndarray:
    """The logarithm of the energy in each mel band: float32 (frames, mels); frames after the clip are 0.

    Source: `spectrogram` of `transformers.audio_utils`, and Kaldi's filter banks.
    """
    features = np.zeros((steps.frames, steps.num_mels), np.float32)
    num_frames = min(1 + (len(clip) - _WINDOW) // _STEP, steps.frames)
    if num_frames > 0:
        windows = np.lib.stride_tricks.sliding_window_view(clip.astype(np.float64), _WINDOW)[::_STEP]
        frames_TN = np.array(windows[:num_frames])
        frames_TN -= frames_TN.mean(axis=1, keepdims=True)
        emphasised = frames_TN.copy()
        emphasised[:, 1:] -= _EMPHASIS * frames_TN[:, :-1]
        emphasised[:, 0] *= 1 - _EMPHASIS
        # The library rounds the spectrum to single precision.
        spectrum_TF = np.fft.rfft(emphasised * np.hanning(_WINDOW), n=_TRANSFORM, axis=1).astype(np.complex64)
        power_TF = np.abs(spectrum_TF.astype(np.complex128)) ** 2
        # One band at a time: the order of each sum does not depend on the number of frames.
        bands = _mel_bands(steps.num_mels, steps.sample_rate)
        energy = [np.sum(power_TF[:, first:last] * weights, axis=1) for first, last, weights in bands]
        features[:num_frames] = np.log(np.maximum(np.stack(energy, axis=1), _MIN_ENERGY))
    if steps.normalises:
        features = (features - np.float32(steps.mean)) / np.float32(steps.deviation * 2)
    return features


def _whisper_frames(steps: AudioSteps, clip: np.ndarray) -> np.ndarray:
    """The logarithm of the power in each mel band, relative to the loudest one of the clip: float32 (mels, frames).

    Source: Radford et al. 2022, "Robust Speech Recognition via Large-Scale Weak Supervision", section 2.2, and
    `WhisperFeatureExtractor` of `transformers`.
    """
    assert steps.window is not None
    assert steps.step is not None
    assert steps.samples is not None
    padded = np.full(steps.samples, steps.padding)
    padded[: min(len(clip), steps.samples)] = clip[: steps.samples]
    mirrored = np.pad(padded, steps.window // 2, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(mirrored, steps.window)[:: steps.step][: steps.frames]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(steps.window) / steps.window)
    spectrum_TF = np.fft.rfft(windows * hann, axis=1)
    power_TF = spectrum_TF.real**2 + spectrum_TF.imag**2
    bands = _slaney_bands(steps.num_mels, steps.sample_rate, steps.window)
    energy = [np.sum(power_TF[:, first:last] * weights, axis=1) for first, last, weights in bands]
    levels = np.log10(np.maximum(np.stack(energy), _MIN_POWER))
    return ((np.maximum(levels, levels.max() - _RANGE) + 4) / 4).astype(np.float32)


@cache
def _slaney_bands(num_mels: int, sample_rate: int, window: int) -> list[tuple[int, int, np.ndarray]]:
    """As `_mel_bands`, on Slaney's mel scale: linear below 1,000 Hz; triangles of equal area over the frequencies."""
    edges = _slaney_hertz(np.linspace(0.0, 15 + np.log(_MAX_HERTZ / 1000) * 27 / np.log(6.4), num_mels + 2))
    hertz_F = np.linspace(0, sample_rate // 2, window // 2 + 1)
    return [
        _triangle(hertz_F, low, centre, high, 2 / (high - low))
        for low, centre, high in zip(edges, edges[1:], edges[2:], strict=False)
    ]


def _slaney_hertz(mels: np.ndarray) -> np.ndarray:
    return np.where(mels < 15, mels * 200 / 3, 1000 * np.exp(np.log(6.4) / 27 * (mels - 15)))


def _triangle(
    points_F: np.ndarray, low: float, centre: float, high: float, height: float
) -> tuple[int, int, np.ndarray]:
    """The first point with a weight, the end (exclusive), and the weights between them."""
    weights = np.maximum(np.minimum((points_F - low) / (centre - low), (high - points_F) / (high - centre)), 0) * height
    covered = np.flatnonzero(weights)
    first, last = (int(covered[0]), int(covered[-1]) + 1) if covered.size else (0, 1)
    return first, last, weights[first:last]


@cache
def _mel_bands(num_mels: int, sample_rate: int) -> list[tuple[int, int, np.ndarray]]:
    """The first frequency, the end (exclusive) and the weights of each band: triangles on Kaldi's mel scale."""
    edges = np.linspace(_to_mel(20.0), _to_mel(float(sample_rate // 2)), num_mels + 2)
    mels_F = _to_mel(sample_rate / _TRANSFORM * np.arange(_TRANSFORM // 2 + 1))
    return [
        _triangle(mels_F, low, centre, high, 1.0)
        for low, centre, high in zip(edges, edges[1:], edges[2:], strict=False)
    ]


def _to_mel(frequency: np.ndarray | float) -> np.ndarray:
    return 1127.0 * np.log(1.0 + np.asarray(frequency) / 700.0)
