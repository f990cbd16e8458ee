"""Packages with all that they need, each at the version that is installed here."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bloomery.data_contracts.errors import EngineMissing


def pinned(packages: Iterable[str]) -> list[str]:
    """`name==version` of the packages and of whatever they need on this machine, sorted.

    So a container holds what was tested, and not what is newest on the day when it is built.

    Raises:
        EngineMissing: one of them is not installed.
    """
    found: dict[str, str] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [Requirement(package) for package in packages]
    while waiting:
        wanted = waiting.pop()
        key = canonicalize_name(wanted.name), frozenset(wanted.extras)
        if key in seen:
            continue
        seen.add(key)
        try:
            distribution = importlib.metadata.distribution(wanted.name)
        except importlib.metadata.PackageNotFoundError as failure:
            raise EngineMissing(
                f"the package {wanted.name}, which the endpoint needs, is not installed",
                required=str(wanted),
                where="the Python environment of this process",
                remedy="set the environment up again from requirements.lock",
            ) from failure
        found[key[0]] = distribution.version
        waiting += [one for one in map(Requirement, distribution.requires or ()) if _is_needed(one, wanted.extras)]
    return [f"{name}=={version}" for name, version in sorted(found.items())]


def _is_needed(requirement: Requirement, extras: set[str]) -> bool:
    if requirement.marker is None:
        return True
    return any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras))
