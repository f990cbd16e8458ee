"""The endpoint inside a bento: raw rows in the contract's columns, checked, encoded and answered.

Everything it needs lies in the bento's `artifacts` folder, so a bento answers the same wherever and whenever it is
served. It never imports torch.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import bentoml

# uvicorn takes these, which are quicker than its own, where they are installed; so they travel with the bento.
import httptools  # noqa: F401
import uvloop  # noqa: F401
from _bentoml_sdk import Service  # type: ignore[import-untyped]

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime asks when it is loaded, and else tells its maker

from bloomery.data_contracts.serving.api_keys import demand
from bloomery.deployments.endpoint.asgi.application import Application
from bloomery.deployments.endpoint.asgi.uvicorn_protocol import Connection, limit_connections
from bloomery.deployments.endpoint.auth.middleware import Usage, doors, settled
from bloomery.deployments.endpoint.base_image import image
from bloomery.deployments.endpoint.http.limits import read_limits
from bloomery.deployments.endpoint.inference.model_version import read_manifest
from bloomery.deployments.endpoint.parent_watchdog import end_with
from bloomery.deployments.endpoint.startup import open_endpoint, read_versions, read_wishes
from bloomery.deployments.endpoint.telemetry.metrics import Measures

PARENT = os.getppid()  # as early as it can be asked for
ARTIFACTS = Path(__file__).resolve().parents[2] / "artifacts"
limits = read_limits()
limit_connections(limits)
application = Application(limits, Measures(), demand(os.environ))
usage = Usage()
# As uvicorn's own `--no-access-log` does. Otherwise each line is made, and thrown away by BentoML's settings.
logging.getLogger("uvicorn.access").propagate = False


class Front(Service[Any]):
    """Lets our application see a request first.

    Mounted behind BentoML's layers, as is documented, it would answer the same, and take several times as long. This
    is the one place that relies on what BentoML does not document, and `tests/flows/test_pipeline.py` holds it.
    """

    def to_asgi(self, is_main: bool = True) -> Any:
        application.inner = super().to_asgi(is_main)
        front = doors(application, os.environ, usage, application.measures.asked)
        Connection.front = front
        return front


@bentoml.service(
    name="bloomery",
    image=image(),
    service_class=Front,
    logging={"access": {"enabled": False}},  # every answer is in the log of predictions
)
class Endpoint:
    """One model version behind its contract."""

    def __init__(self) -> None:
        if bentoml.server_context.worker_index is not None:  # not where a program of its own holds the endpoint
            end_with(PARENT)
        self._end = open_endpoint(application, ARTIFACTS, read_wishes())

    @bentoml.on_shutdown
    def end(self) -> None:
        """Afterwards the log of predictions is whole."""
        self._end()

    @bentoml.on_deployment
    @staticmethod
    def examine() -> None:
        """Before the first worker starts, since BentoML starts one that fails again and again."""
        settled(os.environ)
        read_manifest(ARTIFACTS)
        read_versions(ARTIFACTS, read_wishes())

    @bentoml.api
    async def predict(self, rows: list[Any], ctx: bentoml.Context) -> dict[str, Any]:
        """What `/predict` answers, for BentoML's own clients, which read its description. Over HTTP `Front` answers."""
        status, document = await application.answered(rows)
        ctx.response.status_code = status
        return document
