"""The endpoint inside a bento: raw rows in the contract's columns, checked, encoded and answered.

Everything it needs lies in the bento's `artifacts` folder, so a bento answers the same wherever and whenever it is
served. It never imports torch.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from pathlib import Path
from typing import Any

import bentoml
import numpy as np

from data_contracts.contract import Contract
from data_contracts.digests import digest_of_file
from data_contracts.errors import DataUnfit, OutputCorrupt
from data_contracts.requests import RowCheck, RowsRefused
from models.answers import meant, outputs_of
from models.encoder import encode, read_encoder
from models.runtime import session

ARTIFACTS = Path(__file__).resolve().parent.parent / "artifacts"


def read_manifest(artifacts: Path) -> dict[str, Any]:
    """The bento's manifest, after every file that it lists was found to be the one that was packaged.

    Raises:
        OutputCorrupt: a file is missing or changed.
    """
    manifest: dict[str, Any] = json.loads((artifacts / "manifest.json").read_text(encoding="utf-8"))
    for name, sha256 in manifest["files"].items():
        found = digest_of_file(artifacts / name) if (artifacts / name).is_file() else "no file"
        if found != sha256:
            raise OutputCorrupt(
                f"{name} is not the file that was packaged: {found}",
                required=f"sha256 {sha256}",
                where=str(artifacts / name),
                remedy="package the version again, or serve another one",
            )
    return manifest


@bentoml.service(name="bloomery")
class Endpoint:
    """One model version behind its contract."""

    def __init__(self) -> None:
        self.manifest = read_manifest(ARTIFACTS)
        contract = Contract.model_validate_json((ARTIFACTS / "contract.json").read_text(encoding="utf-8"))
        self.encoder = read_encoder(ARTIFACTS / "encoder.json")
        self.check = RowCheck(contract, self.encoder.columns)
        self.session = session(ARTIFACTS / self.manifest["model"])

    @bentoml.api
    async def predict(self, rows: list[Any], ctx: bentoml.Context) -> dict[str, Any]:
        """A prediction for each row, in order; or 422 with row, column, value and rule of each problem.

        A prediction is a label with the probabilities of all, or for a regression a value in the label's units.
        """
        try:
            table = self.check.table(rows)
        except RowsRefused as refusal:
            ctx.response.status_code = HTTPStatus.UNPROCESSABLE_ENTITY
            return {"error": str(refusal), "problems": refusal.problems[:20]}
        try:
            x = encode(self.encoder, table)
        except DataUnfit as refusal:  # the recipe refuses categories that the training part has not
            ctx.response.status_code = HTTPStatus.UNPROCESSABLE_ENTITY
            return {"error": refusal.found, "problems": []}
        outputs_BK = outputs_of(self.session, x, is_row_by_row=self.manifest["is_row_by_row"])
        return {"predictions": self._predictions(meant(self.encoder, outputs_BK)), "model": self.manifest["tag"]}

    def _predictions(self, given: np.ndarray) -> list[dict[str, Any]]:
        if self.encoder.features.task == "regression":
            return [{"value": float(value)} for value in given]
        classes = self.encoder.classes
        return [
            {
                "label": classes[int(shares_K.argmax())],
                "probabilities": {str(one): float(share) for one, share in zip(classes, shares_K, strict=True)},
            }
            for shares_K in given
        ]
