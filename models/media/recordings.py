"""Recordings in wav files, decoded by SciPy to samples of one channel at one rate."""

from __future__ import annotations

import io
import math
import struct
import warnings

import numpy as np

from bloomery.models.media.config import AudioDecoding, MediaBudget, MediaUnreadable

_MIN_RATE, _MAX_RATE = 1_000, 384_000  # Hz that can be converted; the filter grows with the rate
_UNKNOWN_SIZES = (0, 0xFFFFFFFF)  # in the head of a recording that was written to a pipe


def decode_recording(
    content: bytes, decoding: AudioDecoding, budget: MediaBudget | None = None
) -> tuple[np.ndarray, int]:
    """Returns the samples, float32 (N,), and their rate in Hz.

    Another rate is converted by a polyphase filter, which suppresses what the new rate cannot represent.

    Raises:
        MediaTooLarge: there are more samples than the budget has, before or after the conversion.
        MediaUnreadable: the file is no wav file or is truncated, has no sound, or has another rate or more
            channels than `decoding` allows.
    """
    rate, samples = read_wav(content)
    new_rate = decoding.sample_rate or rate
    if rate != new_rate and not decoding.resample:
        raise MediaUnreadable(f"{rate} Hz, where {new_rate} is required")
    if budget is not None:
        num_samples = max(samples.size, math.ceil(len(samples) * new_rate / max(rate, 1)))
        budget.take(num_samples, f"{num_samples:,} samples")
    wave = _scale(samples)
    if wave.ndim == 2:
        if wave.shape[1] > 1 and not decoding.mono:
            raise MediaUnreadable(f"{wave.shape[1]} channels, where one is required (`mono: true` averages them)")
        wave = wave.mean(axis=1, dtype=np.float64)
    _require_sound(wave)
    if rate != new_rate:
        wave = _resample(wave, rate, new_rate)
    return wave.astype(np.float32), int(new_rate)


def read_wav(content: bytes) -> tuple[int, np.ndarray]:
    """Returns the rate in Hz and the samples, (N,) or (N, channels), in the file's type.

    Raises:
        MediaUnreadable: the content is no wav file that SciPy reads, or is truncated.
    """
    from scipy.io import wavfile

    _require_complete(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)  # about metadata after the sound
            rate, samples = wavfile.read(io.BytesIO(content))
    except UnboundLocalError:  # a fault of SciPy where a file has no samples
        raise MediaUnreadable("no wav file: it has no samples") from None
    except Exception as failure:  # SciPy raises errors of many kinds
        raise MediaUnreadable(f"no wav file: {failure}") from failure
    return int(rate), samples


def _require_complete(content: bytes) -> None:
    """Raises MediaUnreadable for a truncated file, from which SciPy reads what is left without an error."""
    if len(content) < 8 or content[:4] != b"RIFF":
        return
    (size,) = struct.unpack("<I", content[4:8])
    if size not in _UNKNOWN_SIZES and size + 8 > len(content) + 1:  # many writers omit the last byte of padding
        raise MediaUnreadable(f"truncated: {len(content):,} of {size + 8:,} bytes")


def _require_sound(wave: np.ndarray) -> None:
    if not wave.size:
        raise MediaUnreadable("an empty recording, without samples")
    if not np.isfinite(wave).all():
        raise MediaUnreadable(f"{np.count_nonzero(~np.isfinite(wave)):,} samples are not finite numbers")
    if wave.min() == wave.max():
        raise MediaUnreadable(f"silence: all {wave.size:,} samples are equal")


def _resample(wave: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """Returns the samples at another rate. The filter may overshoot; samples from -1 to 1 stay in this range."""
    from scipy.signal import resample_poly

    if not _MIN_RATE <= rate <= _MAX_RATE:
        raise MediaUnreadable(f"{rate} Hz, where {_MIN_RATE} to {_MAX_RATE} Hz can be converted")
    divisor = math.gcd(rate, new_rate)
    converted = resample_poly(wave.astype(np.float64), new_rate // divisor, rate // divisor)
    limit = max(1.0, float(np.abs(wave).max()))
    return np.clip(converted, -limit, limit)


def _scale(samples: np.ndarray) -> np.ndarray:
    """Scales to the range -1 to 1. Integers are divided by the largest magnitude of their type; 8 bits are unsigned."""
    if samples.dtype == np.uint8:
        return (samples.astype(np.float64) - 128) / 128
    if np.issubdtype(samples.dtype, np.integer):
        return samples.astype(np.float64) / -float(np.iinfo(samples.dtype).min)
    return samples
