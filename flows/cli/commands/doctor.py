"""`bloomery doctor`: checks what every run needs, and runs nothing."""

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


class CheckResult(NamedTuple):
    """The result of a check. `passed` is False if a run would fail."""

    name: str
    passed: bool
    detail: str


def run_checks() -> list[CheckResult]:
    """Returns the result of every check, in the order in which a run needs what they check."""
    results: list[CheckResult] = []
    for check in (_python, _state_folder, _disk, _packages, _java, _ports, _processor, _gpu, _litert, _energy):
        results += _catch_errors(check)
    return results


def _catch_errors(check: Callable[[], Iterator[CheckResult]]) -> list[CheckResult]:
    try:
        return list(check())
    except BloomeryError as error:
        message = f"{error.found}. {error.remedy}"
    except (OSError, subprocess.TimeoutExpired) as error:
        message = str(error)
    return [CheckResult(check.__name__.strip("_").replace("_", " "), False, message)]


def _python() -> Iterator[CheckResult]:
    yield CheckResult("python", sys.version_info >= (3, 11), f"{platform.python_version()} at {sys.executable}")


def _state_folder() -> Iterator[CheckResult]:
    from bloomery.tasks.infrastructure.settings import require_state_folder

    settings = require_state_folder()
    yield CheckResult("state folder", True, str(settings.home))
    yield CheckResult("tracking", True, settings.tracking_uri)
    yield CheckResult("prefect api", True, settings.prefect_api_url or "an ephemeral server for each run")


def _disk() -> Iterator[CheckResult]:
    from bloomery.tasks.infrastructure.settings import settings

    free = shutil.disk_usage(settings().home).free / 1e9
    yield CheckResult("disk", free >= _DISK_NEEDED_GB, f"{free:.1f} GB free, {_DISK_NEEDED_GB:g} GB needed")


def _packages() -> Iterator[CheckResult]:
    for package in _PACKAGES:
        try:
            yield CheckResult(package, True, importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            yield CheckResult(package, False, "not installed: `make run` installs it")


def _java() -> Iterator[CheckResult]:
    from bloomery.tasks.infrastructure.spark_session import find_java

    java = find_java()
    yield CheckResult("java", True, f"{java.version} from {java.origin}, {java.home}")


def _ports() -> Iterator[CheckResult]:
    from bloomery.data_contracts.errors import PortInUse
    from bloomery.tasks.infrastructure.tethered_process import require_free_port

    for port, server in _PORTS.items():
        try:
            require_free_port("127.0.0.1", port)
            yield CheckResult(f"port {port}", True, f"free for the {server} server")
        except PortInUse as error:
            # Not a failure: a run takes free ports, and `serve` has --port.
            yield CheckResult(f"port {port}", True, f"in use: {error.where}")


def _processor() -> Iterator[CheckResult]:
    capability = os.environ.get("ATEN_CPU_CAPABILITY", "as detected")
    yield CheckResult("processor", True, f"{platform.machine()}, {os.cpu_count()} cores, instruction set {capability}")


def _gpu() -> Iterator[CheckResult]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        yield CheckResult("gpu", True, "none; a GPU is optional")
        return
    listing = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=30)
    yield CheckResult("gpu", True, listing.stdout.strip().split("\n")[0] or "none; a GPU is optional")


def _litert() -> Iterator[CheckResult]:
    from bloomery.tasks.infrastructure.settings import settings

    python = settings().litert_python
    if python is None:
        yield CheckResult(
            "litert", True, "no Python is configured for it; only `extra_formats: [litert]` under compression needs one"
        )
        return
    from bloomery.models.export.litert_exporter import require_litert

    require_litert(python)
    yield CheckResult("litert", True, python)


def _energy() -> Iterator[CheckResult]:
    from bloomery.models.profiling.rapl import open_energy_counter

    try:
        open_energy_counter()
        detail = "measured by the processor"
    except EngineMissing as error:  # not a failure: few recipes need it
        detail = f"{error.found}; only `objective: energy` needs it"
    yield CheckResult("energy", True, detail)
