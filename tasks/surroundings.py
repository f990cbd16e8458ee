"""What of a machine and its packages the bits of a version depend on."""

from __future__ import annotations

import platform
from pathlib import Path

from data_contracts.digests import digest_of_file
from data_contracts.origin import Surroundings
from models.compression.processor import processor_flags
from tasks.code_version import code_version, packages_of, reach

STAGES = ("ingest", "validate", "prepare", "train", "compress")  # those whose bits a rebuilt version repeats
_LOCK = Path(__file__).resolve().parent.parent / "requirements.lock"


def surroundings(processor: str) -> Surroundings:
    """Those of this process. `processor` is what a training said of its threads and instruction set."""
    modules = reach(*(f"tasks.{stage}" for stage in STAGES))
    return Surroundings(
        python=platform.python_version(),
        packages=packages_of(modules.values()),
        lock_sha256=digest_of_file(_LOCK) if _LOCK.is_file() else None,
        processor=processor,
        machine=f"{platform.system()} {platform.machine()}",
        vector_flags=processor_flags(),
    )


def codes() -> dict[str, str]:
    """The code version of each stage."""
    return {stage: code_version(f"tasks.{stage}") for stage in STAGES}
