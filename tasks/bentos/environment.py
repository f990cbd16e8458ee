"""The machine and the packages on which the bits of a version depend."""

from __future__ import annotations

import platform
from pathlib import Path

from bloomery.data_contracts.documents.digests import digest_of_file
from bloomery.data_contracts.records.provenance import Environment
from bloomery.models.profiling.cpu_features import cpu_flags
from bloomery.tasks.orchestration.code_version import code_version, packages_of, reach

STAGES = ("ingest", "validate", "prepare", "train", "compress")  # their outputs are reproducible bit for bit
_LOCK = Path(__file__).resolve().parents[2] / "requirements.lock"


def describe_environment(processor: str) -> Environment:
    """The environment of this process. `processor` describes the threads and instruction set of training."""
    modules = reach(*(f"bloomery.tasks.{stage}.stage" for stage in STAGES))
    return Environment(
        python=platform.python_version(),
        packages=packages_of(modules.values()),
        lock_sha256=digest_of_file(_LOCK) if _LOCK.is_file() else None,
        processor=processor,
        machine=f"{platform.system()} {platform.machine()}",
        vector_flags=cpu_flags(),
    )


def code_versions() -> dict[str, str]:
    """The code version of each stage."""
    # The arguments are those of a stage's key, so that its cached result is returned.
    return {stage: code_version(f"bloomery.tasks.{stage}.stage", bundled_modules=()) for stage in STAGES}
