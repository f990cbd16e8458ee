"""Common servers of the same ONNX file, each started by `python peers.py KIND PORT`.

PEER_MODEL names the file and PEER_SHAPE the shape of a row. They receive encoded rows, so they do less work than
our endpoint, and validate only what their framework validates. BentoML's and LitServe's servers are in files of their
own (`by_bentoml.py`, `by_litserve.py`), since their worker processes import the file again.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

SHAPE = tuple(map(int, os.environ.get("PEER_SHAPE", "1").split(",")))


def open_session() -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(os.environ["PEER_MODEL"], options, providers=["CPUExecutionProvider"])


def predict_rows(session: onnxruntime.InferenceSession, rows: Any) -> list[list[float]]:
    x = np.asarray(rows, dtype=np.float32).reshape(-1, *SHAPE)
    outputs: list[list[float]] = session.run(None, {"x": x})[0].tolist()
    return outputs


def serve_bentoml(port: int) -> None:
    """Serves by_bentoml.py with default settings."""
    command = [
        sys.executable,
        "-m",
        "bentoml",
        "serve",
        "by_bentoml:Default",
        "--port",
        str(port),
        "--host",
        "127.0.0.1",
    ]
    subprocess.run(command, cwd=Path(__file__).resolve().parent, check=True)


def serve_fastapi(port: int) -> None:
    """Serves with FastAPI and pydantic models of request and response."""
    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel

    class Rows(BaseModel):
        rows: list[list[float]]

    class Predictions(BaseModel):
        predictions: list[list[float]]

    app, session = FastAPI(), open_session()

    def predict(body: Rows) -> Predictions:
        return Predictions(predictions=predict_rows(session, body.rows))

    predict.__annotations__ = {"body": Rows, "return": Predictions}
    app.post("/predict")(predict)
    uvicorn.run(app, port=port, log_level="warning", access_log=False)


def serve_fastapi_lean(port: int) -> None:
    """Serves with FastAPI and orjson, without models and validation."""
    import orjson
    import uvicorn
    from fastapi import FastAPI, Request, Response

    app, session = FastAPI(), open_session()

    async def predict(request: Request) -> Response:
        outputs = predict_rows(session, orjson.loads(await request.body())["rows"])
        return Response(orjson.dumps({"predictions": outputs}), media_type="application/json")

    predict.__annotations__ = {"request": Request}
    app.post("/predict", response_model=None)(predict)
    uvicorn.run(app, port=port, log_level="warning", access_log=False)


def serve_mlflow(port: int) -> None:
    """Saves the file as an MLflow model in the same folder, and serves it with `mlflow models serve`."""
    import mlflow
    import onnx

    folder = Path(os.environ["PEER_MODEL"]).parent / "mlflow-model"
    if not folder.exists():
        mlflow.onnx.save_model(onnx.load(os.environ["PEER_MODEL"]), folder, pip_requirements=[])
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(folder), "-p", str(port)]
    # MLflow looks up uvicorn on PATH; it is in the folder of this Python.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run([*command, "--env-manager", "local", "--workers", "1"], check=True, env={**os.environ, "PATH": path})


KINDS = {
    "bentoml": serve_bentoml,
    "fastapi": serve_fastapi,
    "fastapi-lean": serve_fastapi_lean,
    "mlflow": serve_mlflow,
}

if __name__ == "__main__":
    KINDS[sys.argv[1]](int(sys.argv[2]))
