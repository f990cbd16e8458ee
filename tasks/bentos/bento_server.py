"""Bentos in processes of their own, asked over HTTP."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from bloomery.data_contracts.documents.digests import digest_of_file
from bloomery.data_contracts.errors import DataMissing, OutputCorrupt, SecretMissing
from bloomery.data_contracts.serving.api_keys import DEMANDED, KEYS_FILE, demand, is_loopback, read_keys
from bloomery.data_contracts.serving.signatures import MANIFEST, SIGNATURE, TRUSTED_KEY, require_signed
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.infrastructure.tethered_process import find_free_port, tethered_server
from bloomery.tasks.security.api_keys import keys_file
from bloomery.tasks.security.signing_key import trusted_file

_BENTOMLS_OWN = "bentofile.yaml"  # which it writes beside what it was given


def serve_command(tag: str, host: str, port: int) -> list[str]:
    """The command that serves a bento of the store."""
    return [sys.executable, "-m", "bentoml", "serve", tag, "--host", host, "--port", str(port)]


def serve_environment() -> dict[str, str]:
    """Where a bento in a process of its own finds the keys of its clients and those whose signatures count."""
    found = {KEYS_FILE: str(keys_file())}
    if TRUSTED_KEY in os.environ:
        found[TRUSTED_KEY] = str(Path(os.environ[TRUSTED_KEY]).expanduser().absolute())
    elif trusted_file().is_file():
        found[TRUSTED_KEY] = str(trusted_file())
    return found


def require_keys(host: str) -> None:
    """Raises SecretMissing where the address demands keys and there are none."""
    demanded = demand(os.environ)
    if demanded == "off" or (demanded == "auto" and is_loopback(host)) or read_keys(keys_file()).in_use():
        return
    raise SecretMissing(
        f"on {host} the endpoint demands keys, and there are none",
        required="a key, so that not everybody is answered who reaches this address",
        where=str(keys_file()),
        remedy="make one with `bloomery key create NAME`; or, if something before it keeps strangers out, set "
        f"{DEMANDED}=off",
    )


@contextlib.contextmanager
def served_bento(tag: str) -> Iterator[httpx.Client]:
    """A client of the bento, which runs on a free loopback port inside the `with` block.

    Raises:
        EngineMissing: the bento does not start.
    """
    port = find_free_port()
    url = f"http://127.0.0.1:{port}"

    def is_ready() -> bool:
        try:
            return client.get("/readyz", timeout=2).is_success
        except httpx.HTTPError:
            return False

    log = settings().logs / f"bento-{tag.replace(':', '-')}.log"
    command = serve_command(tag, "127.0.0.1", port)
    with (
        # A proxy of the environment has no business on the loopback interface.
        httpx.Client(base_url=url, timeout=30, trust_env=False) as client,
        # Nobody else is to ask it, whatever is demanded of those who ask it later.
        tethered_server(
            command, is_ready=is_ready, log=log, environment={**serve_environment(), DEMANDED: "off"}
        ) as wait_until_ready,
    ):
        wait_until_ready()
        yield client


def ask(client: httpx.Client, rows: list[dict[str, Any]]) -> httpx.Response:
    return client.post("/predict", json={"rows": rows})


def require_bento(tag: str) -> None:
    """Judge a bento before any line of it runs.

    Raises:
        DataMissing: the store does not hold it.
        SignatureRefused: nobody who is trusted has signed it.
        OutputCorrupt: its code or what it serves is not what was packaged.
    """
    from bloomery.tasks.bentos.bento_store import bento_folder

    if not (bento_folder(tag) / "bento.yaml").is_file():
        raise DataMissing(
            f"the registry names the bento {tag}, but BentoML's store does not have it",
            required="the bento that was packaged with this version",
            where=str(bento_folder(tag)),
            remedy="run the recipe again: it packages what is missing",
        )
    source = bento_folder(tag) / "src"
    try:
        content = (source / "artifacts" / MANIFEST).read_bytes()
    except OSError as failure:
        raise _changed(f"{MANIFEST} cannot be read: {failure.strerror}", source) from failure
    require_signed(content, source / "artifacts", {**os.environ, **serve_environment()})
    try:
        manifest = json.loads(content)
        files = manifest.get("code", {}) | {f"artifacts/{name}": sha256 for name, sha256 in manifest["files"].items()}
        known = {*files, f"artifacts/{MANIFEST}", f"artifacts/{SIGNATURE}", _BENTOMLS_OWN}
    except (ValueError, KeyError, AttributeError, TypeError) as failure:
        raise _changed(f"{MANIFEST} cannot be read: {failure}", source) from failure
    if manifest["tag"] != tag:
        raise _changed(f"it is {manifest['tag']}", source)
    for path in sorted(source.rglob("*")):
        name = str(path.relative_to(source))
        if path.is_file() and "code" in manifest and name not in known and path.suffix != ".pyc":
            raise _changed(f"{name} was not packaged with it", source)
    for name, sha256 in files.items():
        if not (source / name).is_file() or digest_of_file(source / name) != sha256:
            raise _changed(f"{name} is missing or not the file that was packaged", source)


def _changed(found: str, source: Path) -> OutputCorrupt:
    return OutputCorrupt(
        f"the bento was changed: {found}",
        required="the files that its manifest lists, as they were packaged",
        where=str(source),
        remedy="run the recipe again, which packages it again, or serve another version",
    )
