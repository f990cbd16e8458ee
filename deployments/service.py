"""The BentoML service of a bento: validates, encodes and predicts raw rows in the contract's columns.

All its data is in the bento's `artifacts` folder, so a bento gives the same predictions wherever it is served.
It never imports torch.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import bentoml

# uvicorn uses these where they are installed, because they are faster; the imports make them requirements of the bento.
import httptools  # noqa: F401
import uvloop  # noqa: F401
from _bentoml_sdk import Service  # type: ignore[import-untyped]

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime reads this when it is imported

from bloomery.data_contracts.serving.api_keys import read_key_policy
from bloomery.deployments.endpoint.asgi.application import Application
from bloomery.deployments.endpoint.asgi.uvicorn_protocol import EndpointProtocol, install_protocol
from bloomery.deployments.endpoint.auth.key_ring import KeyMetrics
from bloomery.deployments.endpoint.auth.middleware import read_key_settings, require_keys
from bloomery.deployments.endpoint.base_image import container_image
from bloomery.deployments.endpoint.http.limits import read_limits
from bloomery.deployments.endpoint.http.responses import EndpointApp
from bloomery.deployments.endpoint.inference.model_version import read_manifest
from bloomery.deployments.endpoint.pandas_import import prevent_pandas_import
from bloomery.deployments.endpoint.parent_watchdog import terminate_with_parent
from bloomery.deployments.endpoint.startup import load_versions, read_serving_options, start_endpoint
from bloomery.deployments.endpoint.telemetry.metrics import Metrics

PARENT_PID = os.getppid()  # read early, while the parent certainly runs
ARTIFACTS = Path(__file__).resolve().parents[2] / "artifacts"
limits = read_limits()
install_protocol(limits)
application = Application(limits, Metrics(), read_key_policy(os.environ))
key_metrics = KeyMetrics()
# As uvicorn's own `--no-access-log` does; otherwise each line is formatted, then dropped by BentoML's settings.
logging.getLogger("uvicorn.access").propagate = False


class EndpointService(Service[Any]):
    """Puts `application` in front of BentoML's layers.

    Behind them, as documented, each response would take several times as long. Only this class relies on undocumented
    behaviour of BentoML; `tests/flows/test_pipeline.py` tests it.
    """

    def to_asgi(self, is_main: bool = True) -> EndpointApp:
        application.inner = super().to_asgi(is_main)
        endpoint = require_keys(application, os.environ, key_metrics, application.metrics.observe_request)
        EndpointProtocol.endpoint = endpoint
        return endpoint


@bentoml.service(
    name="bloomery",
    image=container_image(),
    service_class=EndpointService,
    logging={"access": {"enabled": False}},  # the prediction log has every response
)
class Endpoint:
    """One model version behind its contract."""

    def __init__(self) -> None:
        if bentoml.server_context.worker_index is not None:  # in a worker of `bentoml serve`
            terminate_with_parent(PARENT_PID)
        prevent_pandas_import()
        self._shut_down = start_endpoint(application, ARTIFACTS, read_serving_options())

    @bentoml.on_shutdown
    def shut_down(self) -> None:
        """Writes the rest of the prediction log."""
        self._shut_down()

    @bentoml.on_deployment
    @staticmethod
    def check() -> None:
        """Fails before the first worker starts, because BentoML restarts a failing worker repeatedly."""
        prevent_pandas_import()
        read_key_settings(os.environ)
        read_manifest(ARTIFACTS)
        load_versions(ARTIFACTS, read_serving_options())

    @bentoml.api
    async def predict(self, rows: list[Any], ctx: bentoml.Context) -> dict[str, Any]:
        """Describes `/predict` to BentoML's own clients; over HTTP `EndpointService` serves it."""
        status, document = await application.predict(rows)
        ctx.response.status_code = status
        return document
