"""One packaged version of a model, loaded: validated rows in, predictions out.

Shapes: B rows, K classes.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from bloomery.data_contracts.documents.digests import digest_of_file
from bloomery.data_contracts.errors import BloomeryError, EngineMissing, OutputCorrupt
from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.records.output_units import format_classes, restore_units
from bloomery.data_contracts.requests.arrow_rows import ArrowRowParser
from bloomery.data_contracts.requests.json_rows import JsonRowParser
from bloomery.data_contracts.serving.predictions import decide_labels, format_prediction, max_difference
from bloomery.data_contracts.serving.signatures import MANIFEST_FILE, require_signed
from bloomery.models.features.encoder import encode, read_encoder
from bloomery.models.features.labels import name_labels
from bloomery.models.features.statistics.arrow_arrays import Rows, list_array
from bloomery.models.inference.outputs import (
    TOLERANCE,
    compute_outputs,
    output_deviations,
    predictions_from,
    score_unit,
)
from bloomery.models.inference.runtime import VECTORS, create_session
from bloomery.models.inference.tagged_words import format_tagged_words, tag_words, tagged_words_table
from bloomery.models.media.config import MEDIA_FILE, MediaColumn, read_media_columns
from bloomery.models.profiling.cpu_features import cpu_flags, needs_reduced_range

if TYPE_CHECKING:
    import onnxruntime

EXAMPLES, BACKGROUND = "examples.json", "background.json"
_log = logging.getLogger("bloomery.endpoint")


def read_manifest(artifacts: Path, environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Reads the bento's manifest after verifying its signature, and verifies the digest of each file that it lists.

    `environment` says which keys are trusted.

    Raises:
        SignatureRefused: the manifest has no valid signature of a trusted key.
        OutputCorrupt: a file is missing or has changed.
        SettingInvalid: the environment lacks a required key.
    """
    try:
        content = (artifacts / MANIFEST_FILE).read_bytes()
        require_signed(content, artifacts, environment)
        manifest: dict[str, Any] = json.loads(content)
    except (OSError, ValueError) as failure:
        raise _corrupt(f"{MANIFEST_FILE} cannot be read: {failure}", "a complete bento", artifacts) from failure
    for name, sha256 in manifest["files"].items():
        digest = digest_of_file(artifacts / name) if (artifacts / name).is_file() else "no file"
        if digest != sha256:
            raise _corrupt(f"{name} differs from the packaged file: {digest}", f"sha256 {sha256}", artifacts / name)
    return manifest


def _corrupt(problem: str, required: str, where: Path) -> OutputCorrupt:
    return OutputCorrupt(
        problem,
        required=required,
        where=str(where),
        remedy="package the version again, or serve another one",
    )


class LoadedVersion:
    """A version that has passed its self-test: its predictions for the bento's example rows are as measured."""

    def __init__(self, artifacts: Path, environment: Mapping[str, str] = os.environ) -> None:
        """Loads a version. Raises as `read_manifest` does, and OutputCorrupt if the self-test fails."""
        self.artifacts = artifacts
        self.manifest = read_manifest(artifacts, environment)
        self.tag: str = self.manifest["tag"]
        self.tag_bytes = self.tag.encode()
        self.contract = Contract.model_validate_json((artifacts / "contract.json").read_text(encoding="utf-8"))
        self.encoder = read_encoder(artifacts / "encoder.json")
        self.row_check = JsonRowParser(self.contract, self.encoder.columns)
        self.arrow_check = ArrowRowParser(self.contract, self.encoder.columns)
        self.media = _read_media_columns(artifacts, self.manifest)
        self.is_regression = self.encoder.features.task == "regression"
        # The names of several labels; empty for a single label.
        self.output_names = [output.name for output in self.encoder.outputs]
        self.output_names += [output.name for output in self.encoder.class_outputs]
        self.is_multilabel = self.encoder.features.task == "multilabel"
        self.is_embedding = self.encoder.features.task == "embedding"
        self.is_tagging = self.encoder.features.task == "tagging"
        interval = self.manifest.get("interval")
        self.half_width: float | None = None if interval is None else interval["half_width"]
        self._session = self._open_session()
        self._class_names = [str(label) for label in self.encoder.classes]
        self.examples: list[dict[str, Any]] = json.loads((artifacts / EXAMPLES).read_text(encoding="utf-8"))
        self._self_test()
        if self.manifest.get("needs_vnni") and needs_reduced_range(cpu_flags()):
            _log.warning(
                "%s may predict differently than measured: this processor has no VNNI, so sums of 8-bit products "
                "saturate; compress with `reduce_range: true`, or serve on a processor with VNNI",
                self.tag,
            )

    def _open_session(self) -> onnxruntime.InferenceSession:
        """A session on the device that the version was measured on, or else on the processor, with a warning."""
        path, device = self.artifacts / self.manifest["model"], self.manifest.get("device")
        try:
            return create_session(path, device=device)
        except EngineMissing as error:
            _log.warning("%s computes on the processor, more slowly than measured on %s: %s", self.tag, device, error)
            return create_session(path)

    def predict(self, rows: Rows) -> np.ndarray:
        """Probabilities float64 (B, K), regression values float64 (B,) or (B, K), or vectors float32 (B, W).

        Those of a tagging task are `TaggedWords`, an array of objects (B,).

        Raises:
            DataUnfit: the encoder rejects a value, such as a category that the training data does not have.
        """
        if self.is_tagging:
            return tag_words(self.encoder, rows, self._compute_outputs)
        return self.predict_encoded(encode(self.encoder, rows))

    def predict_and_count(self, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        """As `predict`, for the texts of an embedding; also the number of tokens of each row, int64 (B,)."""
        x = encode(self.encoder, rows)
        return self.predict_encoded(x), np.count_nonzero(x, axis=1)

    def predict_encoded(self, x: np.ndarray) -> np.ndarray:
        """As `predict`, for encoded rows float32 (B, ...)."""
        predictions = predictions_from(self.encoder, self._compute_outputs(x))
        return restore_units(self.encoder.outputs, predictions) if self.encoder.outputs else predictions

    def _compute_outputs(self, x: np.ndarray) -> np.ndarray:
        return compute_outputs(self._session, x, is_row_by_row=self.manifest["is_row_by_row"])

    @cached_property
    def background(self) -> np.ndarray:
        """Encoded held-out rows of the bento, float32 (N, ...), that `/explain` compares with."""
        rows = json.loads((self.artifacts / BACKGROUND).read_text(encoding="utf-8"))
        body = json.dumps({"rows": rows}).encode()
        return encode(self.encoder, self.row_check.to_columns(self.row_check.parse_json(body)).batch)

    def format_predictions(self, outputs: np.ndarray) -> list[dict[str, Any]]:
        """JSON predictions: a label, or labels, with the probability of each class; a value or several; or a vector.

        Those of a tagging task have a tag for each word, and the entities.
        """
        if self.is_tagging:
            return format_tagged_words(self.encoder.classes, outputs)
        if self.encoder.class_outputs:
            return [format_classes(self.encoder.class_outputs, shares_MK) for shares_MK in outputs]
        if self.output_names:
            return [{"values": dict(zip(self.output_names, values, strict=True))} for values in outputs.tolist()]
        if self.is_embedding:
            return [{"embedding": vector} for vector in self._vectors(outputs).tolist()]
        if self.is_regression and self.half_width is not None:
            limits = zip(outputs.tolist(), *(values.tolist() for values in self._limits(outputs)), strict=True)
            return [{"value": value, "lower": lower, "upper": upper} for value, lower, upper in limits]
        if self.is_regression:
            return [{"value": value} for value in outputs.tolist()]
        classes, names = self.encoder.classes, self._class_names
        if self.is_multilabel:
            sets = name_labels(classes, decide_labels(outputs)).to_pylist()
            return [
                {"labels": labels, "probabilities": dict(zip(names, probabilities, strict=True))}
                for labels, probabilities in zip(sets, outputs.tolist(), strict=True)
            ]
        return [
            {"label": classes[best], "probabilities": dict(zip(names, probabilities, strict=True))}
            for best, probabilities in zip(outputs.argmax(axis=1).tolist(), outputs.tolist(), strict=True)
        ]

    def predictions_table(self, outputs: np.ndarray) -> pa.Table:
        """Predictions as columns; the schema's metadata lists the classes in the order of the probabilities.

        The values or classes of several labels are lists in the order of the metadata's `outputs`; the probabilities of
        their classes are one list, with 0 beyond the classes of a label.
        """
        if self.is_embedding:
            return pa.table({"embedding": list_array(self._vectors(outputs))}).replace_schema_metadata(
                {"model": self.tag}
            )
        if self.encoder.class_outputs:
            table = pa.table({"classes": self._name_classes(outputs), "probabilities": list_array(outputs)})
            classes = {output.name: output.classes for output in self.encoder.class_outputs}
            meanings = {"outputs": json.dumps(self.output_names), "classes": json.dumps(classes)}
            return table.replace_schema_metadata({"model": self.tag, **meanings})
        if self.output_names:
            values = {"values": list_array(outputs)}
            names = json.dumps(self.output_names)
            return pa.table(values).replace_schema_metadata({"model": self.tag, "outputs": names})
        if self.is_tagging:
            table = tagged_words_table(self.encoder.classes, outputs)
        elif self.is_regression:
            limits = (
                {} if self.half_width is None else dict(zip(("lower", "upper"), self._limits(outputs), strict=True))
            )
            table = pa.table({"value": outputs, **limits})
        elif self.is_multilabel:
            labels = name_labels(self.encoder.classes, decide_labels(outputs))
            table = pa.table({"labels": labels, "probabilities": list_array(outputs)})
        else:
            labels = pa.array(list(self.encoder.classes)).take(pa.array(outputs.argmax(axis=1)))
            table = pa.table({"label": labels, "probabilities": list_array(outputs)})
        return table.replace_schema_metadata({"model": self.tag, "classes": json.dumps(self._class_names)})

    @cached_property
    def vector_width(self) -> int:
        """The number of values of an embedding's vectors."""
        return int(self._session.get_outputs()[0].shape[1])

    def _name_classes(self, shares_BMK: np.ndarray) -> pa.ListArray:
        """The most probable classes of several labels, as texts in the order of the labels."""
        best = [shares_BK.argmax(axis=1) for shares_BK in shares_BMK.swapaxes(0, 1)]
        names = [np.array(list(map(str, output.classes)), dtype=object) for output in self.encoder.class_outputs]
        texts = [of_label[positions_B] for of_label, positions_B in zip(names, best, strict=True)]
        return pa.array(np.stack(texts, axis=1).tolist(), pa.list_(pa.string()))

    @cached_property
    def has_int8_vectors(self) -> bool:
        """Whether the values of vectors are integers from -127 to 127."""
        return self._session.get_modelmeta().custom_metadata_map.get(VECTORS) == "int8"

    def _vectors(self, outputs: np.ndarray) -> np.ndarray:
        """Vectors (B, W) in their type, int8 or float32."""
        return outputs.astype(np.int8) if self.has_int8_vectors else outputs

    def _limits(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The lower and upper limits of the conformal intervals around `values`."""
        assert self.half_width is not None
        return values - self.half_width, values + self.half_width

    def _self_test(self) -> None:
        """Compares predictions for the bento's example rows with the measured ones. This also warms up ONNX Runtime."""
        if not self.examples:
            return
        try:
            rows = self.row_check.to_columns(self.row_check.parse_json(self.example_request))
            predictions = self.format_predictions(self.predict(rows))
        except BloomeryError:
            raise
        except Exception as failure:
            raise _corrupt(
                f"the model cannot predict: {failure}", "predictions as measured", self.artifacts
            ) from failure
        limit, deviations = TOLERANCE * score_unit(self.encoder), output_deviations(self.encoder)
        for example, prediction in zip(self.examples, predictions, strict=True):
            if max_difference(prediction, example["prediction"], deviations) > limit:
                raise _corrupt(
                    f"the prediction for a held-out row is {format_prediction(prediction)}",
                    f"{format_prediction(example['prediction'])}, as measured, within {limit:g}",
                    self.artifacts,
                )

    @property
    def example_request(self) -> bytes:
        """The body of a request with the bento's example rows."""
        return json.dumps({"rows": [example["row"] for example in self.examples]}).encode()


def _read_media_columns(artifacts: Path, manifest: dict[str, Any]) -> tuple[MediaColumn, ...]:
    """The columns that requests may have as files; none also if the version is older than such files."""
    if MEDIA_FILE not in manifest["files"]:
        return ()
    return read_media_columns((artifacts / MEDIA_FILE).read_text(encoding="utf-8"))
