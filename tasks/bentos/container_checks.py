"""What must hold of a folder before a container is built from it. Each fault is told in a sentence."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from bloomery.data_contracts.documents.digests import digest_of_file
from bloomery.data_contracts.serving.signatures import MANIFEST
from bloomery.tasks.infrastructure.settings import settings

if TYPE_CHECKING:
    from dockerfile_parse import DockerfileParser

PORT = 3000
_NEEDED = frozenset({"bentoml", "onnxruntime", "pyarrow"})
_TOO_MUCH = frozenset({"torch", "pyspark", "prefect", "mlflow", "great-expectations"})
_PINNED_IMAGE = re.compile(r"@sha256:[0-9a-f]{64}$|:[\w.-]*\d+\.\d+\.\d+")
_SECRET_NAME = re.compile(r"PASSWORD|PASSWD|SECRET|TOKEN|API_?KEY|CREDENTIAL|PRIVATE_?KEY", re.IGNORECASE)
_SECRET_FILE = re.compile(r"(^|/)(\.env[^/]*|\.netrc|\.pypirc|id_(rsa|dsa|ecdsa|ed25519)|[^/]*\.(key|p12|pfx))$")
# These take any long digest, version number or schema for a secret, of which a bento is full.
_TOO_EAGER = frozenset({"Base64HighEntropyString", "HexHighEntropyString", "IPPublicDetector", "KeywordDetector"})


class Checked(NamedTuple):
    faults: list[str]
    base_image: str
    num_packages: int
    num_files: int
    size_bytes: int


def faults(context: Path, most_bytes: int) -> Checked:
    """Everything that is wrong with a build context, and what it comes to."""
    dockerfile = read_dockerfile(context)
    instructions = [
        (one["instruction"], " ".join(one["value"].split()))
        for one in dockerfile.structure
        if one["instruction"] != "COMMENT"
    ]
    files = sorted(path for path in context.rglob("*") if path.is_file())
    requirements = _requirements(context)
    size_bytes = sum(path.stat().st_size for path in files)
    found = [
        *_of_images(dockerfile),
        *_of_copies(context, instructions),
        *_of_running(instructions),
        *_of_requirements(requirements),
        *_of_artifacts(context),
        *_of_secrets(context, files, instructions),
        *_of_paths(context, files),
    ]
    if size_bytes > most_bytes:
        found.append(f"the context has {size_bytes:,} bytes, and at most {most_bytes:,} are taken")
    return Checked(found, str(dockerfile.baseimage), len({*requirements}), len(files), size_bytes)


def read_dockerfile(context: Path) -> DockerfileParser:
    from dockerfile_parse import DockerfileParser

    return DockerfileParser(str(context / "Dockerfile"))


def _of_images(dockerfile: Any) -> Iterator[str]:
    stages = {words[-1] for words in _words(dockerfile, "FROM") if len(words) > 2 and words[-2].upper() == "AS"}
    if not dockerfile.parent_images:
        yield "the Dockerfile names no base image"
    for image in dockerfile.parent_images:
        if image not in stages and not _PINNED_IMAGE.search(image):
            yield f"the base image {image} may be another one tomorrow: name its patch version, or its sha256"


def _of_copies(context: Path, instructions: list[tuple[str, str]]) -> Iterator[str]:
    for instruction, value in instructions:
        if instruction not in ("COPY", "ADD") or "--from=" in value:
            continue
        *sources, _ = [word for word in value.split() if not word.startswith("--")]
        for source in sources:
            if "://" in source:
                yield f"{instruction} {source} fetches what nobody has seen"
            elif Path(source) != Path() and not any(context.glob(source.removeprefix("./").strip("/"))):
                yield f"{instruction} {source}: the context has no such file"


def _of_running(instructions: list[tuple[str, str]]) -> Iterator[str]:
    last = dict(instructions)
    user = last.get("USER", "root").split(":")[0]
    if user in ("root", "0"):
        yield "the service would run as root"
    if str(PORT) not in {value.split("/")[0] for name, value in instructions if name == "EXPOSE"}:
        yield f"the port {PORT} is not exposed"
    if not {"ENTRYPOINT", "CMD"} & set(last):
        yield "nothing says what the container starts"
    health = last.get("HEALTHCHECK", "NONE")
    if "/readyz" not in health or str(PORT) not in health:
        yield f"no health check asks /readyz on port {PORT}"


def _requirements(context: Path) -> list[str]:
    path = context / "env" / "python" / "requirements.txt"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [line.split("#")[0].strip() for line in lines if line.split("#")[0].strip()]


def _of_requirements(lines: list[str]) -> Iterator[str]:
    named: dict[str, str] = {}
    for line in lines:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            yield f"requirement {line!r} is not a package of an index"
            continue
        name = str(canonicalize_name(requirement.name))
        pins = [one for one in requirement.specifier if one.operator == "==" and "*" not in one.version]
        if len(pins) != 1 or len(requirement.specifier) != 1:
            yield f"requirement {line!r} is not pinned with =="
        elif named.setdefault(name, pins[0].version) != pins[0].version:
            yield f"requirement {name} is pinned twice, at {named[name]} and {pins[0].version}"
        if name in _TOO_MUCH:
            yield f"requirement {name} has no business in an endpoint"
    for name in sorted(_NEEDED - set(named)):
        yield f"requirement {name} is missing"


def _of_artifacts(context: Path) -> Iterator[str]:
    source = context / "src"
    try:
        manifest = json.loads((source / "artifacts" / MANIFEST).read_text(encoding="utf-8"))
        listed = {f"artifacts/{name}": sha256 for name, sha256 in manifest["files"].items()} | manifest["code"]
    except (OSError, ValueError, KeyError) as failure:
        yield f"src/artifacts/{MANIFEST} cannot be read: {failure}"
        return
    for name, sha256 in listed.items():
        if not (source / name).is_file() or digest_of_file(source / name) != sha256:
            yield f"src/{name} is not the file that was packaged"


def _of_secrets(context: Path, files: list[Path], instructions: list[tuple[str, str]]) -> Iterator[str]:
    for instruction, value in instructions:
        name, is_given, given = value.partition("=")
        if instruction in ("ENV", "ARG") and is_given and given and _SECRET_NAME.search(name):
            yield f"{instruction} {name} would write a secret into the image"
    for path in files:
        name = path.relative_to(context).as_posix()
        if _SECRET_FILE.search(name):
            yield f"{name} is named like a secret"
        for line, kind in _secrets_in(path):
            yield f"{name}, line {line}: looks like a secret ({kind})"


def _secrets_in(path: Path) -> Iterator[tuple[int, str]]:
    from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
    from detect_secrets.core.scan import scan_file
    from detect_secrets.settings import transient_settings

    detectors: Iterable[type] = get_mapping_from_secret_type_to_class().values()
    names = {detector.__name__ for detector in detectors} - _TOO_EAGER
    with transient_settings({"plugins_used": [{"name": name} for name in sorted(names)]}):
        yield from sorted((found.line_number, found.type) for found in scan_file(str(path)))


def _of_paths(context: Path, files: list[Path]) -> Iterator[str]:
    code = Path(__file__).resolve().parents[2]
    ours = {str(path) for path in (settings().home, Path(sys.prefix), code, Path.cwd()) if len(path.parts) > 2}
    for path in files:
        content = path.read_bytes()
        for place in sorted(ours):
            if place.encode() in content:
                yield f"{path.relative_to(context).as_posix()} names {place}, which is there on this machine only"


def _words(dockerfile: Any, instruction: str) -> list[list[str]]:
    return [one["value"].split() for one in dockerfile.structure if one["instruction"] == instruction]
