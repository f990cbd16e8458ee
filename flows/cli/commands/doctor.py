"""A look at everything that a run needs, without running anything."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

from bloomery.data_contracts.errors import BloomeryError, EngineMissing

_PACKAGES = ("prefect", "pyspark", "great-expectations", "torch", "onnxruntime", "mlflow", "bentoml")
_PORTS = {3000: "endpoint", 4200: "Prefect", 5000: "MLflow"}
_DISK_NEEDED_GB = 2.0


class Finding(NamedTuple):
    """One thing that was looked at. `is_fine` is False if a run would fail on it."""

    what: str
    is_fine: bool
    detail: str


def examine() -> list[Finding]:
    """Every finding, in the order in which a run needs the things."""
    findings: list[Finding] = []
    for look in (_python, _state_folder, _disk, _packages, _java, _ports, _processor, _gpu, _litert, _energy):
        findings += _survived(look)
    return findings


def _survived(look: Callable[[], Iterator[Finding]]) -> list[Finding]:
    try:
        return list(look())
    except BloomeryError as error:
        told = f"{error.found}. {error.remedy}"
    except (OSError, subprocess.TimeoutExpired) as error:
        told = str(error)
    return [Finding(look.__name__.strip("_").replace("_", " "), False, told)]


def _python() -> Iterator[Finding]:
    yield Finding("python", sys.version_info >= (3, 11), f"{platform.python_version()} at {sys.executable}")


def _state_folder() -> Iterator[Finding]:
    from bloomery.tasks.infrastructure.settings import require_state_folder

    chosen = require_state_folder()
    yield Finding("state folder", True, str(chosen.home))
    yield Finding("tracking", True, chosen.tracking_uri)
    yield Finding("prefect api", True, chosen.prefect_api_url or "a server of its own for each run")


def _disk() -> Iterator[Finding]:
    from bloomery.tasks.infrastructure.settings import settings

    free = shutil.disk_usage(settings().home).free / 1e9
    yield Finding("disk", free >= _DISK_NEEDED_GB, f"{free:.1f} GB free, {_DISK_NEEDED_GB:g} GB needed")


def _packages() -> Iterator[Finding]:
    for package in _PACKAGES:
        try:
            yield Finding(package, True, importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(package, False, "not installed: `make run` installs it")


def _java() -> Iterator[Finding]:
    from bloomery.tasks.infrastructure.spark_session import find_java

    java = find_java()
    yield Finding("java", True, f"{java.version} from {java.origin}, {java.home}")


def _ports() -> Iterator[Finding]:
    from bloomery.data_contracts.errors import PortInUse
    from bloomery.tasks.infrastructure.tethered_process import require_free

    for port, server in _PORTS.items():
        try:
            require_free("127.0.0.1", port)
            yield Finding(f"port {port}", True, f"free for the {server} server")
        except PortInUse as error:
            # Not a fault: a run takes free ports, and `serve` has --port.
            yield Finding(f"port {port}", True, f"in use: {error.where}")


def _processor() -> Iterator[Finding]:
    capability = os.environ.get("ATEN_CPU_CAPABILITY", "as found")
    yield Finding("processor", True, f"{platform.machine()}, {os.cpu_count()} cores, instruction set {capability}")


def _gpu() -> Iterator[Finding]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        yield Finding("gpu", True, "none; none is needed")
        return
    told = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=30)
    yield Finding("gpu", True, told.stdout.strip().split("\n")[0] or "none; none is needed")


def _litert() -> Iterator[Finding]:
    from bloomery.tasks.infrastructure.settings import settings

    python = settings().litert_python
    if python is None:
        yield Finding("litert", True, "no Python is named for it; only `also: [litert]` under compression needs one")
        return
    from bloomery.models.export.litert_exporter import require_litert

    require_litert(python)
    yield Finding("litert", True, python)


def _energy() -> Iterator[Finding]:
    from bloomery.models.profiling.rapl import open_energy_counter

    try:
        open_energy_counter()
        told = "counted by the processor"
    except EngineMissing as error:  # not a fault: few recipes ask for it
        told = f"{error.found}; only `objective: energy` needs it"
    yield Finding("energy", True, told)
