"""A LitServe server as in its documentation: `python by_litserve.py PORT`, with a Python that has LitServe."""

# Without `from __future__ import annotations`, since LitServe evaluates the annotations.
import sys
from typing import Any

import litserve
from peers import open_session, predict_rows


class Api(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.session = open_session()

    def decode_request(self, request: dict[str, Any]) -> Any:
        return request["rows"]

    def predict(self, rows: Any) -> Any:
        return predict_rows(self.session, rows)

    def encode_response(self, predictions: Any) -> dict[str, Any]:
        return {"predictions": predictions}


if __name__ == "__main__":
    litserve.LitServer(Api(), accelerator="cpu").run(
        port=int(sys.argv[1]), host="127.0.0.1", generate_client_file=False, log_level="warning"
    )
