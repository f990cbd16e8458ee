"""Pins packages, with all their dependencies, to the installed versions."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bloomery.data_contracts.errors import EngineMissing
from bloomery.models.inference.serving_device import runtime_distribution


def pin_requirements(packages: Iterable[str]) -> list[str]:
    """`name==version` of the packages and their dependencies on this machine, sorted.

    So a container has the tested versions, not the newest ones on the day when it is built.

    Raises:
        EngineMissing: a package is not installed.
    """
    versions: dict[str, str] = {}
    visited: set[tuple[str, frozenset[str]]] = set()
    substitutes = {"onnxruntime": runtime_distribution()}
    pending = [Requirement(substitutes.get(package, package)) for package in packages]
    while pending:
        requirement = pending.pop()
        key = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if key in visited:
            continue
        visited.add(key)
        try:
            distribution = importlib.metadata.distribution(requirement.name)
        except importlib.metadata.PackageNotFoundError as failure:
            raise EngineMissing(
                f"the package {requirement.name}, which the endpoint needs, is not installed",
                required=str(requirement),
                where="the Python environment of this process",
                remedy="install the environment again from requirements.lock",
            ) from failure
        versions[key[0]] = distribution.version
        dependencies = map(Requirement, distribution.requires or ())
        pending += [dependency for dependency in dependencies if _is_needed(dependency, requirement.extras)]
    return [f"{name}=={version}" for name, version in sorted(versions.items())]


def _is_needed(dependency: Requirement, extras: set[str]) -> bool:
    if dependency.marker is None:
        return True
    return any(dependency.marker.evaluate({"extra": extra}) for extra in ("", *extras))
