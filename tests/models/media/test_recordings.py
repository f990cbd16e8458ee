"""Recordings of one channel at one rate, or the reason why there are no samples."""

from __future__ import annotations

import io

import numpy as np
import pytest
from scipy.io import wavfile

from bloomery.models.media.config import AudioDecoding, MediaBudget, MediaTooLarge, MediaUnreadable
from bloomery.models.media.recordings import decode_recording

CONVERTED = AudioDecoding(sample_rate=8000, resample=True, mono=True)
TONE = 440  # Hz


def wav(samples: np.ndarray, rate: int = 8000) -> bytes:
    sink = io.BytesIO()
    wavfile.write(sink, rate, samples)
    return sink.getvalue()


def tone(rate: int, seconds: float = 0.5) -> np.ndarray:
    times = np.arange(round(rate * seconds)) / rate
    return (0.5 * np.sin(2 * np.pi * TONE * times)).astype(np.float32)


@pytest.mark.parametrize("rate", [4000, 11025, 16000, 44100, 48000, 12345])
def test_another_rate_is_converted_and_the_sound_stays(rate: int) -> None:
    wave, new_rate = decode_recording(wav(tone(rate), rate), CONVERTED)
    assert (new_rate, wave.dtype, abs(len(wave) - 4000) <= 1) == (8000, np.float32, True)
    inner = slice(200, 3800)  # at both ends the filter lacks samples
    np.testing.assert_allclose(wave[inner], tone(8000)[inner], atol=0.01)


def test_frequencies_that_the_new_rate_cannot_represent_are_suppressed() -> None:
    times = np.arange(8000) / 16000
    wave, _ = decode_recording(wav(np.sin(2 * np.pi * 6000 * times).astype(np.float32), 16000), CONVERTED)
    assert np.abs(wave[200:-200]).max() < 0.01


def test_the_required_rate_is_read_bit_for_bit() -> None:
    samples = np.random.default_rng(0).integers(-(2**15), 2**15, 100, np.int16)
    for decoding in (CONVERTED, AudioDecoding()):
        wave, _ = decode_recording(wav(samples), decoding)
        np.testing.assert_array_equal(wave, (samples / 32768).astype(np.float32))


def test_a_conversion_does_not_leave_the_range() -> None:
    square = np.repeat(np.tile(np.array([32767, -32768], np.int16), 50), 40)
    wave, _ = decode_recording(wav(square, 16000), CONVERTED)
    assert np.abs(wave).max() <= 1


def test_several_channels_are_averaged_or_refused() -> None:
    stereo = np.array([[0, 16384], [-32768, 0]], np.int16)
    np.testing.assert_array_equal(decode_recording(wav(stereo), CONVERTED)[0], [0.25, -0.5])
    with pytest.raises(MediaUnreadable, match="2 channels, where one is required"):
        decode_recording(wav(stereo), AudioDecoding())


def test_another_rate_is_refused_unless_it_is_to_be_converted() -> None:
    with pytest.raises(MediaUnreadable, match="16000 Hz, where 8000 is required"):
        decode_recording(wav(tone(16000), 16000), AudioDecoding(sample_rate=8000))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (wav(np.zeros(0, np.int16)), "an empty recording"),
        (wav(np.zeros((0, 2), np.int16)), "an empty recording"),
        (wav(np.zeros(99, np.int16)), "silence: all 99 samples are equal"),
        (wav(np.full(9, 128, np.uint8)), "silence: all 9 samples are equal"),
        (wav(np.array([0.5, np.nan, np.inf], np.float32)), "2 samples are not finite numbers"),
        (wav(tone(8000))[:-2000], "truncated: 14,058 of 16,058 bytes"),
        (wav(tone(8000))[:36], "truncated"),
        (wav(tone(8000))[:4], "no wav file"),
        (b"", "no wav file"),
        (b"ID3\x04 an mp3 file", "no wav file"),
        (wav(tone(999), 999), "999 Hz, where 1000 to 384000 Hz can be converted"),
        (wav(tone(2**20), 2**20), "1048576 Hz, where 1000 to 384000 Hz can be converted"),
    ],
)
def test_a_recording_without_sound_has_a_reason(content: bytes, reason: str) -> None:
    with pytest.raises(MediaUnreadable, match=reason):
        decode_recording(content, CONVERTED)


def test_a_recording_that_was_written_to_a_pipe_is_read() -> None:
    content = wav(np.array([1, 2, 3, 4], np.int16))
    unknown = content[:4] + b"\xff" * 4 + content[8:40] + b"\xff" * 4 + content[44:]
    np.testing.assert_array_equal(decode_recording(unknown, CONVERTED)[0] * 32768, [1, 2, 3, 4])


def test_no_more_samples_are_decoded_than_the_budget_has() -> None:
    budget = MediaBudget(5000)
    decode_recording(wav(tone(8000)), CONVERTED, budget)
    with pytest.raises(MediaTooLarge, match="4,000 samples"):
        decode_recording(wav(tone(8000)), CONVERTED, budget)
    with pytest.raises(MediaTooLarge, match="400,000 samples"):  # after the conversion
        decode_recording(wav(np.ones(1000, np.int16), 20), CONVERTED, MediaBudget(5000))
