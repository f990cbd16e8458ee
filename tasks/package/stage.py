"""package: a bento that holds the network, the encoder, the contract and the code that serves them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from filelock import FileLock

from bloomery.data_contracts.documents.digests import digest_of_document, digest_of_file
from bloomery.data_contracts.errors import EngineMissing
from bloomery.data_contracts.monitoring import REFERENCE_FILE
from bloomery.data_contracts.odcs.windowed_contract import with_windows
from bloomery.data_contracts.records.provenance import PROVENANCE_FILE, Provenance, StatedRecipe
from bloomery.data_contracts.records.records import Bento, Choice, describe_lineage
from bloomery.data_contracts.records.score_format import SCORE_NAMES
from bloomery.data_contracts.serving.signatures import MANIFEST_FILE
from bloomery.models.features.encoder import read_encoder
from bloomery.tasks.bentos.bento_store import bento_folder
from bloomery.tasks.bentos.environment import code_versions, describe_environment
from bloomery.tasks.bentos.requirements import pin_requirements
from bloomery.tasks.evaluation.held_out import background_rows, example_predictions
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.model_card.card import CARD_FOLDER, write_card
from bloomery.tasks.monitoring.reference_profile import build_reference
from bloomery.tasks.orchestration import prefect_artifacts
from bloomery.tasks.orchestration.code_version import packages_of, reach, templates_of
from bloomery.tasks.orchestration.stage import stage
from bloomery.tasks.orchestration.stage_store import Output
from bloomery.tasks.security import signing_key

_SERVICE = "bloomery.deployments.service"
_CARD = "bloomery.tasks.model_card"  # presentation, and part of what is packaged
_NUM_EXAMPLES = 4  # with which a version shows, before it answers anyone, that it answers as measured


def _bento_is_kept(record: Bento) -> bool:
    """Whether the bento is there as it was packaged, and signed by the key that signs today."""
    source = bento_folder(record.tag) / "src"
    is_whole = all(
        (source / path).is_file() and digest_of_file(source / path) == sha256 for path, sha256 in record.files
    )
    return is_whole and signing_key.is_signed(source / "artifacts")


@stage(is_whole=_bento_is_kept, present=prefect_artifacts.publish_bento, also=(_CARD,), carried=(_SERVICE,))
def package(out: Output, chosen: Choice, name: str, stated: StatedRecipe) -> Bento:
    """Afterwards BentoML's store holds the bento `name:VERSION`, where VERSION is a digest of all that it serves.

    Its manifest is signed. Beside what is served it carries where it comes from: all records, and the recipe `stated`;
    and a card for people. Neither counts in VERSION, for they hold times and run ids.

    Raises:
        EngineMissing: BentoML could not build it.
        SettingInvalid: BLOOMERY_SIGNING_KEY names no key that could sign.
    """
    context = out.path("context")
    modules = _lay_out(context, chosen)
    files = _digests(context)
    content = digest_of_document(files)
    tag = f"{name}:{content[:16]}"
    # The name counts: under another one the same model is another release.
    digest = digest_of_document([name, content])
    _write_origin(context, tag, digest, chosen, stated)
    write_card(context / "artifacts" / CARD_FOLDER, tag, chosen, stated.recipe)
    files = _digests(context)
    _write_manifest(context, chosen, tag, files)
    kept = _digests(context)
    signing_key.sign_manifest(context / "artifacts")  # no part of the record: under another key it is the same version
    labels = {"run": chosen.candidate.run_id, "data": chosen.candidates.trained.dataset.digest[:16]}
    _build(_build_options(context, tag, modules, labels), tag)
    shutil.rmtree(context)
    return Bento(tag=tag, files=tuple(kept.items()), choice=chosen, digest=digest)


def _lay_out(context: Path, chosen: Choice) -> dict[str, Path]:
    """Copy what is served into `context`: the service with every module that it reaches, and the artifacts."""
    modules = reach(_SERVICE)
    for dotted, source in modules.items():
        target = context.joinpath(*dotted.split(".")).with_suffix(".py")
        if source.name == "__init__.py":
            target = context.joinpath(*dotted.split("."), "__init__.py")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        for template in templates_of(source):
            shutil.copyfile(template, target.parent / template.name)
        (target.parent / "__init__.py").touch()
    folder = context / "artifacts"
    folder.mkdir()
    dataset = chosen.candidates.trained.dataset
    shutil.copyfile(settings().path(chosen.candidate.uri), folder / _model_name(chosen))
    shutil.copyfile(settings().path(dataset.encoder_uri), folder / "encoder.json")
    contract = with_windows(dataset.valid_rows.contract, read_encoder(folder / "encoder.json").features.window_lengths)
    text = contract.model_dump_json(by_alias=True, indent=1, exclude_defaults=True)
    (folder / "contract.json").write_text(text, encoding="utf-8")
    shown = json.dumps(example_predictions(chosen, _NUM_EXAMPLES), indent=1)
    (folder / "examples.json").write_text(shown, encoding="utf-8")
    compared_with = json.dumps(background_rows(chosen))
    (folder / "background.json").write_text(compared_with, encoding="utf-8")
    usual = build_reference(chosen).model_dump_json(by_alias=True, exclude_defaults=True)
    (folder / REFERENCE_FILE).write_text(usual, encoding="utf-8")
    return modules


def _model_name(chosen: Choice) -> str:
    """Under which the model lies in the bento: its ending says in which form it is."""
    return "model" + "".join(Path(chosen.candidate.uri).suffixes)


def _digests(context: Path) -> dict[str, str]:
    """The sha256 of every file that decides an answer, by its path in the bento."""
    return {
        str(path.relative_to(context)): digest_of_file(path) for path in sorted(context.rglob("*")) if path.is_file()
    }


def _write_origin(context: Path, tag: str, digest: str, chosen: Choice, stated: StatedRecipe) -> None:
    """Its times and run ids differ from run to run, so it is no part of the version's digest."""
    origin = Provenance(
        tag=tag,
        digest=digest,
        recipe=stated.recipe,
        choice=chosen,
        code=code_versions(),
        environment=describe_environment(chosen.candidates.trained.processor),
    )
    text = origin.model_dump_json(by_alias=True, indent=1, exclude_defaults=True)
    (context / "artifacts" / PROVENANCE_FILE).write_text(text, encoding="utf-8")


def _write_manifest(context: Path, chosen: Choice, tag: str, files: dict[str, str]) -> None:
    dataset = chosen.candidates.trained.dataset
    inside = {
        path.removeprefix("artifacts/"): sha256 for path, sha256 in files.items() if path.startswith("artifacts/")
    }
    manifest = {
        "tag": tag,
        "files": inside,
        "code": {path: sha256 for path, sha256 in files.items() if not path.startswith("artifacts/")},
        "model": _model_name(chosen),
        "columns": dataset.inputs,
        "candidate": chosen.candidate.name,
        "is_row_by_row": chosen.candidate.is_row_by_row,
        "needs_vnni": chosen.candidate.needs_vnni,
        "test_score": {"name": SCORE_NAMES[dataset.task], **chosen.candidate.score.model_dump()},
        "parents": [{"stage": stage_name, "digest": digest} for stage_name, digest, _ in describe_lineage(chosen)],
    }
    (context / "artifacts" / MANIFEST_FILE).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _build_options(context: Path, tag: str, modules: dict[str, Path], labels: dict[str, str]) -> dict[str, Any]:
    """The arguments of `bentoml.bentos.build`; the requirements are what the modules import, and what that needs.

    Raises:
        EngineMissing: a package is not installed.
    """
    name, version = tag.split(":")
    return {
        "service": f"{_SERVICE}:Endpoint",
        "name": name,
        "version": version,
        "build_ctx": str(context),
        "labels": labels,
        "include": [str(path.relative_to(context)) for path in sorted(context.rglob("*")) if path.is_file()],
        "python": {
            "packages": pin_requirements(packages_of(modules.values())),
            "lock_packages": False,
        },
    }


def _build(options: dict[str, Any], tag: str) -> None:
    """Build in a store of its own, then move the bento into the real one: it is there whole or not at all."""
    final = bento_folder(tag)
    store = Path(os.environ["BENTOML_HOME"])
    final.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(final.parent / ".lock"):
        beside = store / ".building" / tag.replace(":", "-")
        shutil.rmtree(beside, ignore_errors=True)
        # In a process of its own, whose working folder is the context: so the bento's modules are imported, not ours.
        built = subprocess.run(
            [sys.executable, "-c", "import bentoml, json, sys; bentoml.bentos.build(**json.load(sys.stdin))"],
            input=json.dumps(options),
            cwd=options["build_ctx"],
            env={**os.environ, "BENTOML_HOME": str(beside)},
            capture_output=True,
            text=True,
        )
        name, version = tag.split(":")
        source = beside / "bentos" / name / version
        if built.returncode != 0 or not source.is_dir():
            raise EngineMissing(
                f"BentoML could not build {tag}: {(built.stderr or built.stdout)[-1500:]}",
                required="a bento in BentoML's store",
                where=options["build_ctx"],
                remedy="run `bloomery doctor`; the lines above say what BentoML missed",
            )
        shutil.rmtree(final, ignore_errors=True)
        source.rename(final)
        (final.parent / "latest").write_text(version, encoding="utf-8")
        shutil.rmtree(beside, ignore_errors=True)
