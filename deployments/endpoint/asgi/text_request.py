"""A request that has texts instead of rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from bloomery.data_contracts.requests.columnar_rows import Row
from bloomery.deployments.endpoint.inference.micro_batcher import RequestResult
from bloomery.deployments.endpoint.inference.model_version import LoadedVersion


class TextRequest(NamedTuple):
    """The validated rows of a request, and the function that turns their result into the body of the response."""

    rows: list[Row]
    respond: Callable[[RequestResult], bytes]


TextParser = Callable[[LoadedVersion, bytes, int], TextRequest]  # from version, body and the most rows
