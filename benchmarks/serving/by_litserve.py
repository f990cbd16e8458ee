"""LitServe as its documentation shows it: `python by_litserve.py PORT`, with the Python that has it."""

# No `from __future__ import annotations` here: LitServe reads the annotations.
import sys
from typing import Any

import litserve
from peers import answered, open_session


class Api(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.session = open_session()

    def decode_request(self, request: dict[str, Any]) -> Any:
        return request["rows"]

    def predict(self, rows: Any) -> Any:
        return answered(self.session, rows)

    def encode_response(self, found: Any) -> dict[str, Any]:
        return {"predictions": found}


if __name__ == "__main__":
    litserve.LitServer(Api(), accelerator="cpu").run(
        port=int(sys.argv[1]), host="127.0.0.1", generate_client_file=False, log_level="warning"
    )
