"""Common servers of the same ONNX file, each started by `python peers.py KIND PORT`.

PEER_MODEL names the file and PEER_SHAPE the shape of a row. They receive encoded rows, so they do less than our
endpoint, and validate only what their framework validates. BentoML's and LitServe's servers are separate files
(`by_bentoml.py`, `by_litserve.py`), because their worker processes import them again.
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


def bentoml_default(port: int) -> None:
    """BentoML's `@bentoml.api` on an array, with its defaults."""
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


def fastapi_pydantic(port: int) -> None:
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


def fastapi_lean(port: int) -> None:
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


def mlflow_serve(port: int) -> None:
    """`mlflow models serve` of the file, which is saved as an MLflow model beside it."""
    import mlflow
    import onnx

    folder = Path(os.environ["PEER_MODEL"]).parent / "mlflow-model"
    if not folder.exists():
        mlflow.onnx.save_model(onnx.load(os.environ["PEER_MODEL"]), folder, pip_requirements=[])
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(folder), "-p", str(port)]
    # It looks up uvicorn in PATH; uvicorn lies beside this Python.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run([*command, "--env-manager", "local", "--workers", "1"], check=True, env={**os.environ, "PATH": path})


KINDS = {
    "bentoml": bentoml_default,
    "fastapi": fastapi_pydantic,
    "fastapi-lean": fastapi_lean,
    "mlflow": mlflow_serve,
}

if __name__ == "__main__":
    KINDS[sys.argv[1]](int(sys.argv[2]))
