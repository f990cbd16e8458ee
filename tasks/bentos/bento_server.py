"""Verifies bentos, serves them in subprocesses, and requests predictions over HTTP."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bloomery.data_contracts.documents.digests import digest_of_file
from bloomery.data_contracts.errors import DataMissing, OutputCorrupt, SecretMissing
from bloomery.data_contracts.serving.api_keys import (
    KEY_POLICY_VARIABLE,
    KEYS_FILE_VARIABLE,
    is_loopback,
    read_key_policy,
    read_keys,
)
from bloomery.data_contracts.serving.signatures import (
    MANIFEST_FILE,
    SIGNATURE_FILE,
    TRUSTED_KEY_VARIABLE,
    require_signed,
)
from bloomery.tasks.bentos.bento_store import bento_folder
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.infrastructure.tethered_process import find_free_port, slowdown, tethered_server
from bloomery.tasks.security.api_keys import keys_file
from bloomery.tasks.security.signing_key import trusted_keys_file

if TYPE_CHECKING:
    import httpx

_BENTOFILE = "bentofile.yaml"  # written by BentoML beside the packaged files


def serve_command(tag: str, host: str, port: int, remedy: str = "") -> list[str]:
    """The command that serves a bento of the store. After a signal it prints `remedy`.

    It names the bento's folder: for a tag, BentoML first looks for a folder or module of that name in the current one.
    """
    program = str(Path(__file__).with_name("serve_process.py"))
    folder = str(bento_folder(tag))
    return [sys.executable, "-P", program, remedy, "serve", folder, "--host", host, "--port", str(port)]


def serve_environment() -> dict[str, str]:
    """The variables that name the API key file and the trusted public keys of a served bento."""
    environment = {KEYS_FILE_VARIABLE: str(keys_file())}
    if TRUSTED_KEY_VARIABLE in os.environ:
        environment[TRUSTED_KEY_VARIABLE] = str(Path(os.environ[TRUSTED_KEY_VARIABLE]).expanduser().absolute())
    elif trusted_keys_file().is_file():
        environment[TRUSTED_KEY_VARIABLE] = str(trusted_keys_file())
    return environment


def require_keys(host: str) -> None:
    """Raises SecretMissing where the address requires API keys and there are none."""
    policy = read_key_policy(os.environ)
    if policy == "off" or (policy == "auto" and is_loopback(host)) or read_keys(keys_file()).active_keys():
        return
    raise SecretMissing(
        f"on {host} the endpoint requires keys, and there are none",
        required="a key, since everybody who reaches this address would get predictions",
        where=str(keys_file()),
        remedy="create one with `bloomery key create NAME`; or set "
        f"{KEY_POLICY_VARIABLE}=off if a proxy in front of the endpoint authenticates clients",
    )


@contextlib.contextmanager
def serve_bento(tag: str) -> Iterator[httpx.Client]:
    """A client of the bento, which is served on a free loopback port inside the `with` block.

    Raises:
        EngineMissing: the bento does not start.
    """
    import httpx

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
        # A proxy of the environment must not see requests to loopback.
        httpx.Client(base_url=url, timeout=30 * slowdown(), trust_env=False) as client,
        # Only this process sends requests, so no key is needed, even if the policy requires one of later clients.
        tethered_server(
            command, is_ready=is_ready, log=log, environment={**serve_environment(), KEY_POLICY_VARIABLE: "off"}
        ) as wait_until_ready,
    ):
        wait_until_ready()
        yield client


def post_rows(client: httpx.Client, rows: list[dict[str, Any]]) -> httpx.Response:
    return client.post("/predict", json={"rows": rows})


def require_bento(tag: str) -> None:
    """Verifies a bento before any of its code runs.

    Raises:
        DataMissing: the store does not have it.
        SignatureRefused: it has no valid signature of a trusted key.
        OutputCorrupt: its code or its artifacts differ from what was packaged.
    """
    if not (bento_folder(tag) / "bento.yaml").is_file():
        raise DataMissing(
            f"the registry names the bento {tag}, but BentoML's store does not have it",
            required="the bento that was packaged with this version",
            where=str(bento_folder(tag)),
            remedy="run the recipe again; it packages what is missing",
        )
    source = bento_folder(tag) / "src"
    try:
        content = (source / "artifacts" / MANIFEST_FILE).read_bytes()
    except OSError as failure:
        raise _changed_error(f"{MANIFEST_FILE} cannot be read: {failure.strerror}", source) from failure
    require_signed(content, source / "artifacts", {**os.environ, **serve_environment()})
    try:
        manifest = json.loads(content)
        digests = manifest.get("code", {}) | {f"artifacts/{name}": sha256 for name, sha256 in manifest["files"].items()}
        packaged = {*digests, f"artifacts/{MANIFEST_FILE}", f"artifacts/{SIGNATURE_FILE}", _BENTOFILE}
    except (ValueError, KeyError, AttributeError, TypeError) as failure:
        raise _changed_error(f"{MANIFEST_FILE} cannot be read: {failure}", source) from failure
    if manifest["tag"] != tag:
        raise _changed_error(f"its manifest is of {manifest['tag']}", source)
    for path in sorted(source.rglob("*")):
        name = str(path.relative_to(source))
        if path.is_file() and "code" in manifest and name not in packaged and path.suffix != ".pyc":
            raise _changed_error(f"{name} was not packaged with it", source)
    for name, sha256 in digests.items():
        if not (source / name).is_file() or digest_of_file(source / name) != sha256:
            raise _changed_error(f"{name} is missing or differs from the packaged file", source)


def _changed_error(problem: str, source: Path) -> OutputCorrupt:
    return OutputCorrupt(
        f"the bento was changed: {problem}",
        required="the files that its manifest lists, as they were packaged",
        where=str(source),
        remedy="run the recipe again, which packages it again, or serve another version",
    )
