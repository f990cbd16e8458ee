"""Bentos in processes of their own, asked over HTTP."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import httpx

from data_contracts.errors import DataMissing
from tasks.processes import free_port, starting
from tasks.settings import settings


def serve_command(tag: str, host: str, port: int) -> list[str]:
    """The command that serves a bento of the store."""
    return [sys.executable, "-m", "bentoml", "serve", tag, "--host", host, "--port", str(port)]


@contextlib.contextmanager
def served_bento(tag: str) -> Iterator[httpx.Client]:
    """A client of the bento, which runs on a free loopback port inside the `with` block.

    Raises:
        EngineMissing: the bento does not start.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"

    def is_ready() -> bool:
        try:
            return httpx.get(f"{url}/readyz", timeout=2, trust_env=False).is_success
        except httpx.HTTPError:
            return False

    log = settings().logs / f"bento-{tag.replace(':', '-')}.log"
    command = serve_command(tag, "127.0.0.1", port)
    with (
        starting(command, is_ready=is_ready, log=log) as wait_until_ready,
        # A proxy of the environment has no business on the loopback interface.
        httpx.Client(base_url=url, timeout=30, trust_env=False) as client,
    ):
        wait_until_ready()
        yield client


def ask(client: httpx.Client, rows: list[dict[str, Any]]) -> httpx.Response:
    return client.post("/predict", json={"rows": rows})


def require_bento(tag: str) -> None:
    """Raises DataMissing unless the store holds the bento."""
    from tasks.package import bento_folder

    if not (bento_folder(tag) / "bento.yaml").is_file():
        raise DataMissing(
            f"the registry names the bento {tag}, but BentoML's store does not have it",
            required="the bento that was packaged with this version",
            where=str(bento_folder(tag)),
            remedy="run the recipe again: it packages what is missing",
        )
