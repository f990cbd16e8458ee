"""What to do when a server does not respond: Prefect's, MLflow's, or that of a bento."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from bloomery.data_contracts.errors import EngineMissing
from bloomery.tasks.infrastructure.settings import Settings

_PREFECT_TEXT = "Failed to reach API at "  # of a RuntimeError that Prefect's client raises


def unreachable_server_error(failure: BaseException, settings: Settings) -> EngineMissing | None:
    """Returns the error to report if the failure, or one of its causes, is that a server could not be reached."""
    for cause in _causes(failure):
        if _is_from_other_server(cause):
            return EngineMissing(
                f"MLFLOW_TRACKING_URI is {settings.tracking_uri!r}, which MLflow cannot use: {str(cause)[:300]}",
                required="the address of an MLflow server or database, such as http://HOST:5000",
                where="the environment",
                remedy="correct the variable, or unset it to use the database in the state folder",
            )
        address = _unreachable_address(cause)
        if address is None:
            continue
        description, remedy = _describe(address, settings)
        return EngineMissing(
            f"{description} at {address} does not respond: {type(cause).__name__}: {cause}",
            required="a server that responds",
            where=address,
            remedy=f"{remedy}; the outputs of complete stages are kept, and the same command continues after them",
        )
    return None


def _causes(failure: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = failure
    seen: set[int] = set()
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        # Engines raise errors of their own without `from`; elsewhere, a context need not be a cause.
        is_from_engine = type(cause).__module__.partition(".")[0] in ("mlflow", "prefect")
        cause = cause.__cause__ or (cause.__context__ if is_from_engine else None)


def _is_from_other_server(failure: BaseException) -> bool:
    """Whether MLflow knows no such kind of address, or another program responds there."""
    if type(failure).__module__.partition(".")[0] != "mlflow":
        return False
    is_other_kind = type(failure).__name__.startswith("Unsupported") and type(failure).__name__.endswith("URIException")
    text = str(failure)
    is_other_page = text.startswith("API request to endpoint") and "failed with error code 404" in text
    return is_other_kind or (is_other_page and "RESOURCE_DOES_NOT_EXIST" not in text)


def _unreachable_address(failure: BaseException) -> str | None:
    """Returns the address of the server that `failure` could not reach; None for any other failure."""
    if isinstance(failure, RuntimeError) and str(failure).startswith(_PREFECT_TEXT):
        return str(failure).removeprefix(_PREFECT_TEXT)
    httpx = sys.modules.get("httpx")  # a failure of it can only exist once it is imported
    if httpx is not None and isinstance(failure, httpx.TransportError):
        try:
            return str(failure.request.url.copy_with(raw_path=b"/"))
        except RuntimeError:  # it belongs to no request
            return "an unknown address"
    requests = sys.modules.get("requests")
    if requests is not None and isinstance(failure, (requests.ConnectionError, requests.Timeout)):
        return failure.request.url if failure.request is not None and failure.request.url else "an unknown address"
    return None


def _describe(address: str, settings: Settings) -> tuple[str, str]:
    """Returns the server's name and what to do about it."""
    prefect, tracking = settings.prefect_api_url, settings.tracking_uri
    if prefect is not None and address.startswith(prefect.removesuffix("/").removesuffix("/api")):
        return "Prefect's server", "check `bloomery status`, or the server that PREFECT_API_URL names"
    if tracking.startswith("http") and address.startswith(tracking.rstrip("/")):
        return "MLflow's server", "check `bloomery status`, or the server that MLFLOW_TRACKING_URI names"
    log = settings.logs / "prefect-server.log"
    return "a server of this command", f"wait until the machine is less busy, read {log}, and run the command again"
