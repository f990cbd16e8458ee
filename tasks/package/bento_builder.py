"""Builds a bento from its build context: the served files, their manifest and provenance."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from filelock import FileLock

from bloomery.data_contracts.documents.digests import digest_of_file
from bloomery.data_contracts.errors import EngineMissing
from bloomery.data_contracts.monitoring import REFERENCE_FILE
from bloomery.data_contracts.odcs.windowed_contract import with_windows
from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.data_contracts.records.lineage import describe_lineage
from bloomery.data_contracts.records.provenance import PROVENANCE_FILE, Provenance, RecipeDocument
from bloomery.data_contracts.records.records import Choice
from bloomery.data_contracts.serving.signatures import MANIFEST_FILE
from bloomery.models.features.encoder import read_encoder
from bloomery.models.media.config import MEDIA_FILE, write_media_columns
from bloomery.tasks.bentos.bento_store import bento_folder
from bloomery.tasks.bentos.bundled_code import SERVICE, copy_modules
from bloomery.tasks.bentos.environment import code_versions, describe_environment
from bloomery.tasks.bentos.requirements import pin_requirements
from bloomery.tasks.evaluation.held_out import background_rows, example_predictions
from bloomery.tasks.infrastructure.python_processes import code_command
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.monitoring.reference_profile import build_reference
from bloomery.tasks.orchestration.code_version import packages_of, reach
from bloomery.tasks.package.media_columns import media_columns

ARTIFACTS = "artifacts"  # the folder in a build context and in a bento
_NUM_EXAMPLES = 4  # with measured predictions, for the test that a version runs before it serves


def write_context(context: Path, choice: Choice, recipe: dict[str, Any]) -> None:
    """Copies the served files into `context`: the code that a version takes along, and the artifacts.

    The data section of `recipe` says how files of images and recordings are decoded.
    """
    copy_modules(context)
    _write_artifacts(context / ARTIFACTS, choice, recipe)


def _write_artifacts(folder: Path, choice: Choice, recipe: dict[str, Any]) -> None:
    folder.mkdir()
    dataset = choice.candidates.trained.dataset
    shutil.copyfile(settings().path(choice.candidate.uri), folder / _model_file(choice))
    shutil.copyfile(settings().path(dataset.encoder_uri), folder / "encoder.json")
    features = read_encoder(folder / "encoder.json").features
    contract = with_windows(dataset.valid_rows.contract, features.window_lengths)
    texts = {
        "contract.json": contract.model_dump_json(by_alias=True, indent=1, exclude_defaults=True),
        "examples.json": json.dumps(example_predictions(choice, _NUM_EXAMPLES), indent=1),
        "background.json": json.dumps(background_rows(choice)),
        REFERENCE_FILE: build_reference(choice).model_dump_json(by_alias=True, exclude_defaults=True),
    }
    media = media_columns(DataSource.model_validate(recipe["data"]), features, contract) if "data" in recipe else []
    if media:
        texts[MEDIA_FILE] = write_media_columns(media)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def _model_file(choice: Choice) -> str:
    """The file name of the model in the bento; its suffixes name its storage format."""
    return "model" + "".join(Path(choice.candidate.uri).suffixes)


def digest_files(context: Path) -> dict[str, str]:
    """The sha256 of every file in `context`, by its relative path."""
    return {
        str(path.relative_to(context)): digest_of_file(path) for path in sorted(context.rglob("*")) if path.is_file()
    }


def write_provenance(context: Path, tag: str, digest: str, choice: Choice, stated_recipe: RecipeDocument) -> None:
    """Writes the records and the recipe of the version. They contain times and run ids, so no digest includes them."""
    provenance = Provenance(
        tag=tag,
        digest=digest,
        recipe=stated_recipe.recipe,
        choice=choice,
        code=code_versions(),
        environment=describe_environment(choice.candidates.trained.processor),
    )
    text = provenance.model_dump_json(by_alias=True, indent=1, exclude_defaults=True)
    (context / ARTIFACTS / PROVENANCE_FILE).write_text(text, encoding="utf-8")


def write_manifest(context: Path, tag: str, choice: Choice) -> None:
    """Writes the manifest, with the sha256 of every file that is in `context` now."""
    dataset, candidate = choice.candidates.trained.dataset, choice.candidate
    prefix, files = f"{ARTIFACTS}/", digest_files(context)
    manifest = {
        "tag": tag,
        "files": {path.removeprefix(prefix): sha256 for path, sha256 in files.items() if path.startswith(prefix)},
        "code": {path: sha256 for path, sha256 in files.items() if not path.startswith(prefix)},
        "model": _model_file(choice),
        "columns": dataset.inputs,
        "candidate": candidate.name,
        "is_row_by_row": candidate.is_row_by_row,
        "needs_vnni": candidate.needs_vnni,
        **({} if candidate.latency.device is None else {"device": candidate.latency.device}),
        "test_score": {"name": choice.candidates.trained.score.title, **candidate.score.model_dump()},
        **({} if candidate.interval is None else {"interval": candidate.interval.model_dump()}),
        "parents": [{"stage": stage, "digest": digest} for stage, digest, _ in describe_lineage(choice)],
    }
    (context / ARTIFACTS / MANIFEST_FILE).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def build_bento(context: Path, tag: str, labels: dict[str, str]) -> None:
    """Builds in a temporary store, then moves the bento into BentoML's store, so that it is never incomplete there.

    Raises:
        EngineMissing: a package is not installed, or BentoML cannot build the bento.
    """
    options = _build_options(context, tag, labels)
    name, version = tag.split(":")
    final = bento_folder(tag)
    store = Path(os.environ["BENTOML_HOME"])
    final.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(final.parent / ".lock"):
        temporary = store / ".building" / tag.replace(":", "-")
        shutil.rmtree(temporary, ignore_errors=True)
        # A separate process with the context as working folder imports the bento's modules, not the installed ones.
        process = subprocess.run(
            code_command("import bentoml, json, sys; bentoml.bentos.build(**json.load(sys.stdin))"),
            input=json.dumps(options),
            cwd=options["build_ctx"],
            env={**os.environ, "BENTOML_HOME": str(temporary)},
            capture_output=True,
            text=True,
        )
        source = temporary / "bentos" / name / version
        if process.returncode != 0 or not source.is_dir():
            raise EngineMissing(
                f"BentoML could not build {tag}: {(process.stderr or process.stdout)[-1500:]}",
                required="a bento in BentoML's store",
                where=options["build_ctx"],
                remedy="run `bloomery doctor`; the lines above show what BentoML lacks",
            )
        shutil.rmtree(final, ignore_errors=True)
        source.rename(final)
        (final.parent / "latest").write_text(version, encoding="utf-8")
        shutil.rmtree(temporary, ignore_errors=True)


def _build_options(context: Path, tag: str, labels: dict[str, str]) -> dict[str, Any]:
    """The arguments of `bentoml.bentos.build`; the requirements are what the service imports and their dependencies."""
    name, version = tag.split(":")
    return {
        "service": f"{SERVICE}:Endpoint",
        "name": name,
        "version": version,
        "build_ctx": str(context),
        "labels": labels,
        "include": [str(path.relative_to(context)) for path in sorted(context.rglob("*")) if path.is_file()],
        "python": {
            "packages": pin_requirements(packages_of(reach(SERVICE).values())),
            "lock_packages": False,
        },
    }
