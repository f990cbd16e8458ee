"""A build context is complete and has passed every check, or does not exist; each check can fail."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bloomery.data_contracts.documents.digests import digest_of_file
from bloomery.data_contracts.errors import ContainerUnfit, StateUnwritable
from bloomery.tasks.bentos.bento_store import bento_folder
from bloomery.tasks.bentos.container_checks import check_context
from bloomery.tasks.bentos.container_context import write_build_context

TAG = "people:0123456789abcdef"
DOCKERFILE = """\
FROM python:3.11.7-slim-bookworm AS base
ARG BENTO_PATH=/home/bentoml/bento
ENV BENTO_PATH=$BENTO_PATH
WORKDIR $BENTO_PATH
COPY --chown=bentoml:bentoml ./env/python ./env/python/
RUN pip install \\
    -r env/python/requirements.txt
COPY . ./
EXPOSE 3000
USER bentoml
ENTRYPOINT ["bentoml", "serve"]
"""
REQUIREMENTS = "bentoml==1.4.39\nonnxruntime==1.31.1\npyarrow==25.0.1\nbentoml==1.4.39\n"


@pytest.fixture
def bento(home: Path) -> Path:
    folder = bento_folder(TAG)
    artifacts = folder / "src" / "artifacts"
    artifacts.mkdir(parents=True)
    (artifacts / "model.onnx").write_bytes(b"a network")
    (folder / "src" / "service.py").write_text("served = True\n")
    manifest = {
        "files": {"model.onnx": digest_of_file(artifacts / "model.onnx")},
        "code": {"service.py": digest_of_file(folder / "src" / "service.py")},
    }
    (artifacts / "manifest.json").write_text(json.dumps(manifest))
    for path, text in (
        ("bento.yaml", "models: []\n"),
        ("env/docker/Dockerfile", DOCKERFILE),
        ("env/docker/entrypoint.sh", "#!/bin/sh\n"),
        ("env/python/requirements.txt", REQUIREMENTS),
        ("src/__pycache__/service.pyc", "left by a server"),
    ):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return folder


def test_a_context_has_the_bento_and_a_dockerfile_with_a_health_check(bento: Path, tmp_path: Path) -> None:
    context = write_build_context(TAG, tmp_path / "image")
    assert (context.base_image, context.num_packages) == ("python:3.11.7-slim-bookworm", 3)
    files = {path.relative_to(context.folder).as_posix() for path in context.folder.rglob("*") if path.is_file()}
    assert files == {
        ".dockerignore",
        "Dockerfile",
        "bento.yaml",
        "env/docker/entrypoint.sh",
        "env/python/requirements.txt",
        "src/artifacts/manifest.json",
        "src/artifacts/model.onnx",
        "src/service.py",
    }
    dockerfile = (context.folder / "Dockerfile").read_text()
    assert dockerfile.startswith(DOCKERFILE)
    assert "/readyz" in dockerfile.removeprefix(DOCKERFILE)
    assert check_context(context.folder, 10**9).problems == []


def test_a_base_image_may_be_named_by_its_sha256(bento: Path, tmp_path: Path) -> None:
    image = "registry.example.org/python@sha256:" + "0" * 64
    assert write_build_context(TAG, tmp_path / "image", base_image=image).base_image == image
    assert f"FROM {image} AS base" in (tmp_path / "image" / "Dockerfile").read_text()


@pytest.mark.parametrize(
    ("path", "old", "new", "message"),
    [
        ("env/docker/Dockerfile", "3.11.7-slim-bookworm", "3.11-slim", "python:3.11-slim is not pinned"),
        ("env/docker/Dockerfile", "./env/python ", "./env/pyhton ", "COPY ./env/pyhton: the context has no such file"),
        ("env/docker/Dockerfile", "COPY . ./", "ADD https://example.org/x ./", "downloads an unchecked file"),
        ("env/docker/Dockerfile", "USER bentoml", "USER 0:0", "would run as root"),
        ("env/docker/Dockerfile", "USER bentoml\n", "", "would run as root"),
        ("env/docker/Dockerfile", "EXPOSE 3000", "EXPOSE 8000", "the port 3000 is not exposed"),
        ("env/docker/Dockerfile", 'ENTRYPOINT ["bentoml", "serve"]', "", "there is neither ENTRYPOINT nor CMD"),
        ("env/docker/Dockerfile", "EXPOSE", "ENV API_TOKEN=abc\nEXPOSE", "ENV API_TOKEN would write a secret"),
        ("env/python/requirements.txt", "pyarrow==25.0.1", "pyarrow>=25", "'pyarrow>=25' is not pinned with =="),
        ("env/python/requirements.txt", "pyarrow==25.0.1", "pyarrow==25.*", "'pyarrow==25.*' is not pinned with =="),
        ("env/python/requirements.txt", "pyarrow==25.0.1\n", "", "requirement pyarrow is missing"),
        ("env/python/requirements.txt", "pyarrow", "torch==2.13.0\npyarrow", "torch does not belong in an endpoint"),
        ("env/python/requirements.txt", "pyarrow", "./wheels/x.whl\npyarrow", "is not a package of an index"),
        ("env/python/requirements.txt", "pyarrow", "bentoml==1.4.38\npyarrow", "bentoml is pinned twice"),
        ("src/artifacts/model.onnx", "a network", "another", "model.onnx differs from the packaged file"),
        ("src/service.py", "True", "False", "src/service.py differs from the packaged file"),
        ("src/artifacts/manifest.json", "{", "", "manifest.json cannot be read"),
        ("bento.yaml", "[]", "[]\nkey: AKIAIOSFODNN7EXAMPLF", "yaml, line 2: looks like a secret (AWS Access Key)"),
        ("bento.yaml", "[]", "-----BEGIN RSA PRIVATE KEY-----", "looks like a secret (Private Key)"),
    ],
)
def test_an_unsuitable_bento_is_rejected(
    bento: Path, tmp_path: Path, path: str, old: str, new: str, message: str
) -> None:
    text = (bento / path).read_text()
    assert old in text
    (bento / path).write_text(text.replace(old, new, 1))
    with pytest.raises(ContainerUnfit) as caught:
        write_build_context(TAG, tmp_path / "out" / "image")
    assert message in caught.value.found
    assert list((tmp_path / "out").iterdir()) == []


def test_all_problems_are_reported_at_once(bento: Path, tmp_path: Path) -> None:
    (bento / "env" / "docker" / "Dockerfile").write_text(DOCKERFILE.replace("USER bentoml", "USER root"))
    (bento / "env" / "python" / "requirements.txt").write_text(REQUIREMENTS + "prefect==3.8.8\n")
    with pytest.raises(ContainerUnfit, match=r"as root\n.*prefect does not belong"):
        write_build_context(TAG, tmp_path / "image")


def test_an_edited_context_needs_a_health_check(bento: Path, tmp_path: Path) -> None:
    context = write_build_context(TAG, tmp_path / "image")
    (context.folder / "Dockerfile").write_text(DOCKERFILE)
    assert check_context(context.folder, 10**9).problems == ["no HEALTHCHECK requests /readyz on port 3000"]


def test_local_paths_and_secret_files_are_rejected(bento: Path, home: Path, tmp_path: Path) -> None:
    (bento / "src" / "notes.txt").write_text(f"see {home}/logs")
    (bento / "src" / ".env").write_text("")
    with pytest.raises(ContainerUnfit) as caught:
        write_build_context(TAG, tmp_path / "image")
    assert "src/.env has the name of a secret file" in caught.value.found
    assert f"src/notes.txt names {home}, a path of this machine" in caught.value.found


def test_a_context_beyond_its_size_limit_is_rejected(bento: Path, tmp_path: Path) -> None:
    with pytest.raises(ContainerUnfit, match="the limit is 100"):
        write_build_context(TAG, tmp_path / "image", max_bytes=100)


def test_an_existing_folder_is_replaced_only_by_force_and_only_if_it_is_a_context(bento: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    write_build_context(TAG, folder)
    with pytest.raises(StateUnwritable, match="exists already"):
        write_build_context(TAG, folder)
    (folder / "added").touch()
    write_build_context(TAG, folder, force=True)
    assert not (folder / "added").exists()
    (folder / "bento.yaml").unlink()
    with pytest.raises(StateUnwritable, match="holds no bento"):
        write_build_context(TAG, folder, force=True)


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def make() -> None:
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("bloomery.tasks.bentos.container_context.check_context", full)

    return make


def test_a_full_disk_leaves_nothing_behind(bento: Path, tmp_path: Path, full_disk: Callable[[], None]) -> None:
    full_disk()
    with pytest.raises(StateUnwritable, match="No space left"):
        write_build_context(TAG, tmp_path / "out" / "image")
    assert list((tmp_path / "out").iterdir()) == []
