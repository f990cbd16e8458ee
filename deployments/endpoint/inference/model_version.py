"""One packaged version of a model, loaded: checked rows in, predictions out.

Shapes: B rows, K classes.
"""

from __future__ import annotations

import json
import logging
import os
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bloomery.data_contracts.documents.digests import digest_of_file
from bloomery.data_contracts.errors import BloomeryError, OutputCorrupt
from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.requests.arrow_rows import ArrowCheck
from bloomery.data_contracts.requests.json_rows import RowCheck
from bloomery.data_contracts.serving.predictions import furthest, in_words
from bloomery.data_contracts.serving.signatures import MANIFEST, require_signed
from bloomery.models.features.encoder import encode, read_encoder
from bloomery.models.features.statistics.arrow_arrays import Rows
from bloomery.models.inference.outputs import TOLERANCE, compute_outputs, predictions_from, score_unit
from bloomery.models.inference.runtime import create_session
from bloomery.models.profiling.cpu_features import cpu_flags, needs_reduced_range

EXAMPLES, BACKGROUND = "examples.json", "background.json"
_log = logging.getLogger("bloomery.endpoint")


def read_manifest(artifacts: Path) -> dict[str, Any]:
    """The bento's manifest, after its signature was judged and every file that it lists was found to be the one that
    was packaged.

    Raises:
        SignatureRefused: nobody who is trusted has signed the manifest.
        OutputCorrupt: a file is missing or changed.
        SettingInvalid: the environment names no key where it must.
    """
    try:
        content = (artifacts / MANIFEST).read_bytes()
        require_signed(content, artifacts, os.environ)
        manifest: dict[str, Any] = json.loads(content)
    except (OSError, ValueError) as failure:
        raise _corrupt(f"{MANIFEST} cannot be read: {failure}", "a whole bento", artifacts) from failure
    for name, sha256 in manifest["files"].items():
        found = digest_of_file(artifacts / name) if (artifacts / name).is_file() else "no file"
        if found != sha256:
            raise _corrupt(f"{name} is not the file that was packaged: {found}", f"sha256 {sha256}", artifacts / name)
    return manifest


def _corrupt(found: str, required: str, where: Path) -> OutputCorrupt:
    return OutputCorrupt(
        found,
        required=required,
        where=str(where),
        remedy="package the version again, or serve another one",
    )


class Version:
    """A version that has shown, on rows that came with it, that it answers here as it was measured."""

    def __init__(self, artifacts: Path) -> None:
        """Raises as `read_manifest` does, and OutputCorrupt where it answers otherwise than was measured."""
        self.artifacts = artifacts
        self.manifest = read_manifest(artifacts)
        self.tag: str = self.manifest["tag"]
        self.tag_bytes = self.tag.encode()
        self.contract = Contract.model_validate_json((artifacts / "contract.json").read_text(encoding="utf-8"))
        self.encoder = read_encoder(artifacts / "encoder.json")
        self.check = RowCheck(self.contract, self.encoder.columns)
        self.arrow_check = ArrowCheck(self.contract, self.encoder.columns)
        self.is_regression = self.encoder.features.task == "regression"
        self._session = create_session(artifacts / self.manifest["model"])
        self._labels = [str(one) for one in self.encoder.classes]
        self.examples: list[dict[str, Any]] = json.loads((artifacts / EXAMPLES).read_text(encoding="utf-8"))
        self._rehearse()
        if self.manifest.get("needs_vnni") and needs_reduced_range(cpu_flags()):
            _log.warning(
                "%s may answer otherwise than measured: this processor has no VNNI, so its sums of 8-bit products "
                "saturate; compress it with `reduce_range: true`, or serve it where there is VNNI",
                self.tag,
            )

    def answers(self, rows: Rows) -> np.ndarray:
        """Probabilities float64 (B, K), or for a regression the figures float64 (B,).

        Raises:
            DataUnfit: a value that the recipe refuses, such as a category that the training part has not.
        """
        return self.answers_to(encode(self.encoder, rows))

    def answers_to(self, x: np.ndarray) -> np.ndarray:
        """The same for encoded rows float32 (B, ...)."""
        return predictions_from(
            self.encoder, compute_outputs(self._session, x, is_row_by_row=self.manifest["is_row_by_row"])
        )

    @cached_property
    def background(self) -> np.ndarray:
        """Held-out rows that came with the version, encoded: float32 (N, ...). `/explain` compares with them."""
        rows = json.loads((self.artifacts / BACKGROUND).read_text(encoding="utf-8"))
        return encode(self.encoder, self.check.columns(self.check.rows(json.dumps({"rows": rows}).encode())).batch)

    def predictions(self, given: np.ndarray) -> list[dict[str, Any]]:
        """As a client reads them: a label with the probabilities of all, or a value in the label's units."""
        if self.is_regression:
            return [{"value": value} for value in given.tolist()]
        classes, labels = self.encoder.classes, self._labels
        return [
            {"label": classes[best], "probabilities": dict(zip(labels, shares, strict=True))}
            for best, shares in zip(given.argmax(axis=1).tolist(), given.tolist(), strict=True)
        ]

    def as_table(self, given: np.ndarray) -> pa.Table:
        """The predictions as columns; the classes of the probabilities are in the schema's metadata, in their order."""
        if self.is_regression:
            table = pa.table({"value": given})
        else:
            labels = pa.array(list(self.encoder.classes)).take(pa.array(given.argmax(axis=1)))
            table = pa.table({"label": labels, "probabilities": _lists(given)})
        return table.replace_schema_metadata({"model": self.tag, "classes": json.dumps(self._labels)})

    def _rehearse(self) -> None:
        """Answer the rows that came with the version. Afterwards ONNX Runtime has laid out its memory, too."""
        if not self.examples:
            return
        try:
            found = self.predictions(self.answers(self.check.columns(self.check.rows(self.request))))
        except BloomeryError:
            raise
        except Exception as failure:
            raise _corrupt(f"the model cannot answer: {failure}", "answers as measured", self.artifacts) from failure
        limit = TOLERANCE * score_unit(self.encoder)
        for one, answered in zip(self.examples, found, strict=True):
            if furthest(answered, one["prediction"]) > limit:
                raise _corrupt(
                    f"for a held-out row it answers {in_words(answered)} here",
                    f"{in_words(one['prediction'])}, as was measured, within {limit:g}",
                    self.artifacts,
                )

    @property
    def request(self) -> bytes:
        """The rows that came with the version as a client would send them."""
        return json.dumps({"rows": [one["row"] for one in self.examples]}).encode()


def _lists(values: np.ndarray) -> pa.Array:
    """Each row of float64 (B, K) as a list."""
    offsets = np.arange(0, values.size + 1, max(values.shape[1], 1), dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, np.ascontiguousarray(values).reshape(-1))
