"""The audio preprocessing that a checkpoint's preprocessor_config.json states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from bloomery.data_contracts.errors import DataMissing, RecipeInvalid
from bloomery.data_contracts.records.checkpoint import PREPROCESSOR_FILE, Checkpoint
from bloomery.models.features.audio_input import AudioInput
from bloomery.models.features.checkpoint_audio import AudioSteps
from bloomery.tasks.checkpoints.json_files import read_object

_SIZES = {"spectrogram": "`max_length` or `num_mel_bins`", "whisper": "`chunk_length` or `feature_size`"}
_RATE = 16_000  # samples per second, the default of all extractors


def read_audio_steps(checkpoint: Checkpoint, config: dict[str, Any], source: AudioInput) -> AudioSteps:
    """Returns the steps of `checkpoint`, whose network has the configuration `config`, for an input.

    Raises:
        DataMissing: there is no preprocessor_config.json.
        RecipeInvalid: it has other steps, or another sample rate or length than the input or the network.
    """
    steps = parse_audio_steps(checkpoint)
    _require_suitable(checkpoint, steps, config, source)
    return steps


def parse_audio_steps(checkpoint: Checkpoint) -> AudioSteps:
    """Returns the steps for any input. Raises as `read_audio_steps`."""
    if PREPROCESSOR_FILE not in checkpoint.files:
        raise DataMissing(
            f"the checkpoint {checkpoint.reference} has no {PREPROCESSOR_FILE}",
            required=f"{PREPROCESSOR_FILE}, as a feature extractor of `transformers` writes it with save_pretrained",
            where=checkpoint.folder,
            remedy="copy it into the folder, or leave `preprocessing` out and set `num_mels` and `normalise`",
        )
    options = read_object(checkpoint.path(PREPROCESSOR_FILE), "model.checkpoint")
    name = str(options.get("feature_extractor_type") or "an unnamed extractor")
    if name not in _EXTRACTORS or options.get("auto_map"):
        raise _unsuitable(
            checkpoint,
            f"the audio preprocessing of {checkpoint.reference} is that of {name}, which is not supported",
            " or ".join(_EXTRACTORS),
            "leave `preprocessing` out, and set `num_mels` and `normalise`",
        )
    try:
        return _EXTRACTORS[name](options)
    except (ValidationError, TypeError, ValueError) as failure:
        raise _unsuitable(
            checkpoint,
            f"{PREPROCESSOR_FILE} has an invalid value: {' '.join(str(failure).split())[:200]}",
            "numbers and flags as `transformers` writes them",
            "copy, download or save it again",
        ) from failure


def _parse_waveform(options: dict[str, Any]) -> AudioSteps:
    return AudioSteps(
        kind="waveform",
        sample_rate=options.get("sampling_rate", _RATE),
        normalises=options.get("do_normalize", True),
        ignores_padding=options.get("return_attention_mask", False),
        padding=options.get("padding_value", 0.0),
    )


def _parse_spectrogram(options: dict[str, Any]) -> AudioSteps:
    return AudioSteps(
        kind="spectrogram",
        sample_rate=options.get("sampling_rate", _RATE),
        normalises=options.get("do_normalize", True),
        num_mels=options.get("num_mel_bins", 128),
        frames=options.get("max_length", 1024),
        mean=options.get("mean", -4.2677393),
        deviation=options.get("std", 4.5689974),
    )


def _parse_whisper(options: dict[str, Any]) -> AudioSteps:
    rate, step = options.get("sampling_rate", _RATE), options.get("hop_length", 160)
    samples = options.get("chunk_length", 30) * rate
    if options.get("dither"):
        raise ValueError("dither adds noise to each clip")
    if not isinstance(samples, int) or not isinstance(step, int) or step < 1:
        raise ValueError("chunk_length, sampling_rate and hop_length are whole numbers")
    steps = AudioSteps(
        kind="whisper",
        sample_rate=rate,
        normalises=False,
        padding=options.get("padding_value", 0.0),
        num_mels=options.get("feature_size", 80),
        frames=samples // step,
        window=options.get("n_fft", 400),
        step=step,
        samples=samples,
    )
    if steps.window is None or steps.window > samples or steps.window % 2:
        raise ValueError("n_fft is odd, or longer than a clip")
    return steps


_EXTRACTORS: dict[str, Callable[[dict[str, Any]], AudioSteps]] = {
    "Wav2Vec2FeatureExtractor": _parse_waveform,
    "ASTFeatureExtractor": _parse_spectrogram,
    "WhisperFeatureExtractor": _parse_whisper,
}


def _require_suitable(checkpoint: Checkpoint, steps: AudioSteps, config: dict[str, Any], source: AudioInput) -> None:
    if source.sample_rate != steps.sample_rate:
        raise _unsuitable(
            checkpoint,
            f"column {source.column} has {source.sample_rate} samples per second, but the checkpoint was trained with "
            f"{steps.sample_rate}",
            f"recordings with {steps.sample_rate} samples per second",
            f"set `sample_rate: {steps.sample_rate}` in `features.inputs`, and `resample: true` and the same "
            "`sample_rate` in `data`",
        )
    shape = (config.get("num_mel_bins", steps.num_mels), _count_frames(config, steps))
    if steps.kind != "waveform" and shape != (steps.num_mels, steps.frames):
        raise _unsuitable(
            checkpoint,
            f"the preprocessing gives {steps.frames} frames of {steps.num_mels} mel bands, but the network reads "
            f"{shape[1]} of {shape[0]}",
            "a preprocessing for this network",
            f"correct {_SIZES[steps.kind]} in {PREPROCESSOR_FILE}, or name another checkpoint",
        )


def _count_frames(config: dict[str, Any], steps: AudioSteps) -> Any:
    """The frames that the network reads; the encoder of Whisper has a position for two of them."""
    if steps.kind != "whisper":
        return config.get("max_length", steps.frames)
    positions = config.get("max_source_positions")
    return 2 * positions if isinstance(positions, int) else steps.frames


def _unsuitable(checkpoint: Checkpoint, problem: str, required: str, remedy: str) -> RecipeInvalid:
    return RecipeInvalid(problem, required=required, where=str(checkpoint.path(PREPROCESSOR_FILE)), remedy=remedy)
