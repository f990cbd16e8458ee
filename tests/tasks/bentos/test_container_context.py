"""A build context is there whole and has passed every check, or not at all; each check can fail."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bloomery.data_contracts.documents.digests import digest_of_file
from bloomery.data_contracts.errors import ContainerUnfit, StateUnwritable
from bloomery.tasks.bentos.bento_store import bento_folder
from bloomery.tasks.bentos.container_checks import faults
from bloomery.tasks.bentos.container_context import write_context
from bloomery.tasks.bentos.requirements import pinned

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


def test_a_context_holds_the_bento_and_a_dockerfile_with_a_health_check(bento: Path, tmp_path: Path) -> None:
    made = write_context(TAG, tmp_path / "image")
    assert (made.base_image, made.num_packages) == ("python:3.11.7-slim-bookworm", 3)
    there = {path.relative_to(made.folder).as_posix() for path in made.folder.rglob("*") if path.is_file()}
    assert there == {
        ".dockerignore",
        "Dockerfile",
        "bento.yaml",
        "env/docker/entrypoint.sh",
        "env/python/requirements.txt",
        "src/artifacts/manifest.json",
        "src/artifacts/model.onnx",
        "src/service.py",
    }
    told = (made.folder / "Dockerfile").read_text()
    assert told.startswith(DOCKERFILE)
    assert "/readyz" in told.removeprefix(DOCKERFILE)
    assert faults(made.folder, 10**9).faults == []


def test_a_base_image_may_be_named_by_its_sha256(bento: Path, tmp_path: Path) -> None:
    image = "registry.example.org/python@sha256:" + "0" * 64
    assert write_context(TAG, tmp_path / "image", base_image=image).base_image == image
    assert f"FROM {image} AS base" in (tmp_path / "image" / "Dockerfile").read_text()


@pytest.mark.parametrize(
    ("path", "old", "new", "said"),
    [
        ("env/docker/Dockerfile", "3.11.7-slim-bookworm", "3.11-slim", "python:3.11-slim may be another one tomorrow"),
        ("env/docker/Dockerfile", "./env/python ", "./env/pyhton ", "COPY ./env/pyhton: the context has no such file"),
        ("env/docker/Dockerfile", "COPY . ./", "ADD https://example.org/x ./", "fetches what nobody has seen"),
        ("env/docker/Dockerfile", "USER bentoml", "USER 0:0", "would run as root"),
        ("env/docker/Dockerfile", "USER bentoml\n", "", "would run as root"),
        ("env/docker/Dockerfile", "EXPOSE 3000", "EXPOSE 8000", "the port 3000 is not exposed"),
        ("env/docker/Dockerfile", 'ENTRYPOINT ["bentoml", "serve"]', "", "nothing says what the container starts"),
        ("env/docker/Dockerfile", "EXPOSE", "ENV API_TOKEN=abc\nEXPOSE", "ENV API_TOKEN would write a secret"),
        ("env/python/requirements.txt", "pyarrow==25.0.1", "pyarrow>=25", "'pyarrow>=25' is not pinned with =="),
        ("env/python/requirements.txt", "pyarrow==25.0.1", "pyarrow==25.*", "'pyarrow==25.*' is not pinned with =="),
        ("env/python/requirements.txt", "pyarrow==25.0.1\n", "", "requirement pyarrow is missing"),
        ("env/python/requirements.txt", "pyarrow", "torch==2.13.0\npyarrow", "torch has no business in an endpoint"),
        ("env/python/requirements.txt", "pyarrow", "./wheels/x.whl\npyarrow", "is not a package of an index"),
        ("env/python/requirements.txt", "pyarrow", "bentoml==1.4.38\npyarrow", "bentoml is pinned twice"),
        ("src/artifacts/model.onnx", "a network", "another", "model.onnx is not the file that was packaged"),
        ("src/service.py", "True", "False", "src/service.py is not the file that was packaged"),
        ("src/artifacts/manifest.json", "{", "", "manifest.json cannot be read"),
        ("bento.yaml", "[]", "[]\nkey: AKIAIOSFODNN7EXAMPLF", "yaml, line 2: looks like a secret (AWS Access Key)"),
        ("bento.yaml", "[]", "-----BEGIN RSA PRIVATE KEY-----", "looks like a secret (Private Key)"),
    ],
)
def test_a_bento_that_would_not_make_a_container_is_refused(
    bento: Path, tmp_path: Path, path: str, old: str, new: str, said: str
) -> None:
    text = (bento / path).read_text()
    assert old in text
    (bento / path).write_text(text.replace(old, new, 1))
    with pytest.raises(ContainerUnfit) as refused:
        write_context(TAG, tmp_path / "out" / "image")
    assert said in refused.value.found
    assert list((tmp_path / "out").iterdir()) == []


def test_every_fault_is_told_at_once(bento: Path, tmp_path: Path) -> None:
    (bento / "env" / "docker" / "Dockerfile").write_text(DOCKERFILE.replace("USER bentoml", "USER root"))
    (bento / "env" / "python" / "requirements.txt").write_text(REQUIREMENTS + "prefect==3.8.8\n")
    with pytest.raises(ContainerUnfit, match=r"as root\n.*prefect has no business"):
        write_context(TAG, tmp_path / "image")


def test_a_health_check_is_demanded_of_a_context_that_was_edited(bento: Path, tmp_path: Path) -> None:
    made = write_context(TAG, tmp_path / "image")
    (made.folder / "Dockerfile").write_text(DOCKERFILE)
    assert faults(made.folder, 10**9).faults == ["no health check asks /readyz on port 3000"]


def test_files_that_belong_to_this_machine_or_to_a_person_are_refused(bento: Path, home: Path, tmp_path: Path) -> None:
    (bento / "src" / "notes.txt").write_text(f"see {home}/logs")
    (bento / "src" / ".env").write_text("")
    with pytest.raises(ContainerUnfit) as refused:
        write_context(TAG, tmp_path / "image")
    assert "src/.env is named like a secret" in refused.value.found
    assert f"src/notes.txt names {home}, which is there on this machine only" in refused.value.found


def test_a_context_beyond_its_size_is_refused(bento: Path, tmp_path: Path) -> None:
    with pytest.raises(ContainerUnfit, match="and at most 100 are taken"):
        write_context(TAG, tmp_path / "image", most_bytes=100)


def test_what_is_there_is_replaced_only_by_force_and_only_if_it_is_a_context(bento: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    write_context(TAG, mine)
    with pytest.raises(StateUnwritable, match="is there already"):
        write_context(TAG, mine)
    (mine / "added").touch()
    write_context(TAG, mine, force=True)
    assert not (mine / "added").exists()
    (mine / "bento.yaml").unlink()
    with pytest.raises(StateUnwritable, match="holds no bento"):
        write_context(TAG, mine, force=True)


@pytest.fixture
def broken_off(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def make() -> None:
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("bloomery.tasks.bentos.container_context.faults", full)

    return make


def test_a_full_disk_leaves_nothing_behind(bento: Path, tmp_path: Path, broken_off: Callable[[], None]) -> None:
    broken_off()
    with pytest.raises(StateUnwritable, match="No space left"):
        write_context(TAG, tmp_path / "out" / "image")
    assert list((tmp_path / "out").iterdir()) == []


def test_packages_are_pinned_with_all_that_they_need() -> None:
    names = [line.split("==")[0] for line in pinned(["bentoml", "pydantic"])]
    assert {"bentoml", "pydantic", "pydantic-core", "starlette", "uvicorn", "h11"} <= set(names)
    assert names == sorted(names)
    # An extra that nobody asked for is left out.
    assert "grpcio" not in names
