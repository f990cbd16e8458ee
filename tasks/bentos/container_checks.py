"""Checks a build context before a container is built from it. Each problem is one sentence."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from bloomery.data_contracts.documents.digests import digest_of_file
from bloomery.data_contracts.serving.signatures import MANIFEST_FILE
from bloomery.tasks.infrastructure.settings import settings

if TYPE_CHECKING:
    from dockerfile_parse import DockerfileParser

PORT = 3000
_REQUIRED_PACKAGES = frozenset({"bentoml", "onnxruntime", "pyarrow"})
_FORBIDDEN_PACKAGES = frozenset({"torch", "pyspark", "prefect", "mlflow", "great-expectations"})
_PINNED_IMAGE = re.compile(r"@sha256:[0-9a-f]{64}$|:[\w.-]*\d+\.\d+\.\d+")
_SECRET_NAME = re.compile(r"PASSWORD|PASSWD|SECRET|TOKEN|API_?KEY|CREDENTIAL|PRIVATE_?KEY", re.IGNORECASE)
_SECRET_FILE = re.compile(r"(^|/)(\.env[^/]*|\.netrc|\.pypirc|id_(rsa|dsa|ecdsa|ed25519)|[^/]*\.(key|p12|pfx))$")
# These report every long digest, version number or schema, of which a bento has many.
_EXCLUDED_DETECTORS = frozenset(
    {"Base64HighEntropyString", "HexHighEntropyString", "IPPublicDetector", "KeywordDetector"}
)
Instructions = list[tuple[str, str]]  # of a Dockerfile: name and value


class ContextReport(NamedTuple):
    problems: list[str]
    base_image: str
    num_packages: int
    num_files: int
    size_bytes: int


def check_context(context: Path, max_bytes: int) -> ContextReport:
    """All problems of a build context, with its size and contents."""
    dockerfile = read_dockerfile(context)
    instructions = [
        (entry["instruction"], " ".join(entry["value"].split()))
        for entry in dockerfile.structure
        if entry["instruction"] != "COMMENT"
    ]
    files = sorted(path for path in context.rglob("*") if path.is_file())
    requirements = _read_requirements(context)
    size_bytes = sum(path.stat().st_size for path in files)
    problems = [
        *_check_images(dockerfile),
        *_check_copies(context, instructions),
        *_check_runtime(instructions),
        *_check_requirements(requirements),
        *_check_artifacts(context),
        *_check_secrets(context, files, instructions),
        *_check_local_paths(context, files),
    ]
    if size_bytes > max_bytes:
        problems.append(f"the context has {size_bytes:,} bytes; the limit is {max_bytes:,}")
    return ContextReport(problems, str(dockerfile.baseimage), len({*requirements}), len(files), size_bytes)


def read_dockerfile(context: Path) -> DockerfileParser:
    from dockerfile_parse import DockerfileParser

    return DockerfileParser(str(context / "Dockerfile"))


def _check_images(dockerfile: DockerfileParser) -> Iterator[str]:
    stages = {words[-1] for words in _from_words(dockerfile) if len(words) > 2 and words[-2].upper() == "AS"}
    if not dockerfile.parent_images:
        yield "the Dockerfile names no base image"
    for image in dockerfile.parent_images:
        if image not in stages and not _PINNED_IMAGE.search(image):
            yield f"the base image {image} is not pinned: name its patch version or its sha256"


def _check_copies(context: Path, instructions: Instructions) -> Iterator[str]:
    for instruction, value in instructions:
        if instruction not in ("COPY", "ADD") or "--from=" in value:
            continue
        *sources, _ = [word for word in value.split() if not word.startswith("--")]
        for source in sources:
            if "://" in source:
                yield f"{instruction} {source} downloads an unchecked file"
            elif Path(source) != Path() and not any(context.glob(source.removeprefix("./").strip("/"))):
                yield f"{instruction} {source}: the context has no such file"


def _check_runtime(instructions: Instructions) -> Iterator[str]:
    last = dict(instructions)
    user = last.get("USER", "root").split(":")[0]
    if user in ("root", "0"):
        yield "the service would run as root"
    if str(PORT) not in {value.split("/")[0] for name, value in instructions if name == "EXPOSE"}:
        yield f"the port {PORT} is not exposed"
    if not {"ENTRYPOINT", "CMD"} & set(last):
        yield "there is neither ENTRYPOINT nor CMD"
    health = last.get("HEALTHCHECK", "NONE")
    if "/readyz" not in health or str(PORT) not in health:
        yield f"no HEALTHCHECK requests /readyz on port {PORT}"


def _read_requirements(context: Path) -> list[str]:
    path = context / "env" / "python" / "requirements.txt"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [line.split("#")[0].strip() for line in lines if line.split("#")[0].strip()]


def _check_requirements(lines: list[str]) -> Iterator[str]:
    versions: dict[str, str] = {}
    for line in lines:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            yield f"requirement {line!r} is not a package of an index"
            continue
        name = str(canonicalize_name(requirement.name))
        pins = [pin for pin in requirement.specifier if pin.operator == "==" and "*" not in pin.version]
        if len(pins) != 1 or len(requirement.specifier) != 1:
            yield f"requirement {line!r} is not pinned with =="
        elif versions.setdefault(name, pins[0].version) != pins[0].version:
            yield f"requirement {name} is pinned twice, at {versions[name]} and {pins[0].version}"
        if name in _FORBIDDEN_PACKAGES:
            yield f"requirement {name} does not belong in an endpoint"
    for name in sorted(_REQUIRED_PACKAGES - set(versions)):
        yield f"requirement {name} is missing"


def _check_artifacts(context: Path) -> Iterator[str]:
    source = context / "src"
    try:
        manifest = json.loads((source / "artifacts" / MANIFEST_FILE).read_text(encoding="utf-8"))
        digests = {f"artifacts/{name}": sha256 for name, sha256 in manifest["files"].items()} | manifest["code"]
    except (OSError, ValueError, KeyError) as failure:
        yield f"src/artifacts/{MANIFEST_FILE} cannot be read: {failure}"
        return
    for name, sha256 in digests.items():
        if not (source / name).is_file() or digest_of_file(source / name) != sha256:
            yield f"src/{name} differs from the packaged file"


def _check_secrets(context: Path, files: list[Path], instructions: Instructions) -> Iterator[str]:
    for instruction, value in instructions:
        name, has_value, default = value.partition("=")
        if instruction in ("ENV", "ARG") and has_value and default and _SECRET_NAME.search(name):
            yield f"{instruction} {name} would write a secret into the image"
    for path in files:
        name = path.relative_to(context).as_posix()
        if _SECRET_FILE.search(name):
            yield f"{name} has the name of a secret file"
        for line, secret_type in _find_secrets(path):
            yield f"{name}, line {line}: looks like a secret ({secret_type})"


def _find_secrets(path: Path) -> Iterator[tuple[int, str]]:
    """Line number and type of each possible secret."""
    from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
    from detect_secrets.core.scan import scan_file
    from detect_secrets.settings import transient_settings

    detectors: Iterable[type] = get_mapping_from_secret_type_to_class().values()
    names = {detector.__name__ for detector in detectors} - _EXCLUDED_DETECTORS
    with transient_settings({"plugins_used": [{"name": name} for name in sorted(names)]}):
        yield from sorted((secret.line_number, secret.type) for secret in scan_file(str(path)))


def _check_local_paths(context: Path, files: list[Path]) -> Iterator[str]:
    code = Path(__file__).resolve().parents[2]
    local_paths = {str(path) for path in (settings().home, Path(sys.prefix), code, Path.cwd()) if len(path.parts) > 2}
    for path in files:
        content = path.read_bytes()
        for local_path in sorted(local_paths):
            if local_path.encode() in content:
                yield f"{path.relative_to(context).as_posix()} names {local_path}, a path of this machine"


def _from_words(dockerfile: DockerfileParser) -> list[list[str]]:
    return [entry["value"].split() for entry in dockerfile.structure if entry["instruction"] == "FROM"]
