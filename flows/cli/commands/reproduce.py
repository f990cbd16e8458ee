"""`bloomery reproduce`: rebuilds a version from the provenance in its bento and compares every digest."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bloomery.data_contracts.errors import OutputDiffers
from bloomery.flows.cli.exit_codes import command_session

if TYPE_CHECKING:
    from bloomery.data_contracts.records.provenance import Environment, Provenance, StageDigest
    from bloomery.flows.execution.reproduction import FailedReproduction, Reproduction


def reproduce(
    version: Annotated[str, typer.Argument(help="NAME:VERSION, NAME or a recipe for the champion, or a bento.")],
    folder: Annotated[Path | None, typer.Option(help="An empty working folder, which is kept.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")] = False,
) -> None:
    """Rebuild a version in an empty state folder and compare all digests."""
    with command_session(as_json, "reproduce") as out:
        from bloomery.flows.recipe.recipe_files import resolve_model
        from bloomery.tasks.registry.bento_provenance import is_bento, read_provenance

        provenance = read_provenance(version if is_bento(version) else resolve_model(version))
        work_folder = _empty_folder(folder)
        try:
            outcome = _reproduce(provenance, work_folder)
        finally:
            if folder is None:
                shutil.rmtree(work_folder, ignore_errors=True)
        lines = [] if outcome.kind == "failed" else list(compare_digests(provenance, outcome.steps))
        difference = next((line for line in lines if not line["is_equal"]), None)
        if not as_json:
            for line in lines:
                symbol = "[green]=[/]" if line["is_equal"] else "[red]≠[/]"
                out.print(f"{symbol} {line['stage']:<9} {line['content']:<32} {line['digest'][:16]}")
        if difference is not None or outcome.kind == "failed":
            raise _difference_error(provenance, outcome, difference)
        guarantee = describe_guarantee(provenance)
        if as_json:
            document = {"version": provenance.tag, "verdict": "identical", "guarantee": guarantee, "steps": lines}
            out.file.write(json.dumps(document) + "\n")
        else:
            out.print(f"{provenance.tag}: identical", style="bold", markup=False)
            out.print(guarantee, markup=False)


def compare_digests(provenance: Provenance, reproduced: tuple[StageDigest, ...]) -> Iterator[dict[str, Any]]:
    """Yields each digest of the version with the reproduced one, up to the first that was not reproduced."""
    from bloomery.data_contracts.records.provenance import StageDigest, digest_chain

    content = StageDigest(stage="package", content="content of the bento", digest=provenance.digest)
    digests = {(step.stage, step.content): step.digest for step in reproduced}
    for step in (*digest_chain(provenance.choice), content):
        digest = digests.get((step.stage, step.content))
        yield {**step.model_dump(), "reproduced_digest": digest, "is_equal": digest == step.digest}
        if digest is None:
            return


def describe_guarantee(provenance: Provenance) -> str:
    """Returns which conditions make another run produce equal bits."""
    training = provenance.recipe["training"]
    # If the recipe allows a GPU, only a torch without CUDA shows that none was used.
    may_use_gpu = training["device"] != "cpu" and "+cpu" not in provenance.environment.processor
    if may_use_gpu or training["devices"] * training.get("nodes", 1) > 1:
        return (
            "Trained by several processes or possibly on a GPU: expect equal bits on the same GPUs, in the same "
            "number, with the same libraries."
        )
    return "Trained on a CPU: expect equal bits with the same lock file, threads and instruction set."


def _empty_folder(folder: Path | None) -> Path:
    from bloomery.data_contracts.errors import StateUnwritable

    if folder is None:
        return Path(tempfile.mkdtemp(prefix="bloomery-reproduce-"))
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise StateUnwritable(
            "the folder is not empty",
            required="an empty folder, so that every stage is computed",
            where=str(folder),
            remedy="give another one, or leave --folder out",
        )
    return folder.absolute()


def _reproduce(provenance: Provenance, folder: Path) -> Reproduction | FailedReproduction:
    """Runs the reproduction in a process with its own settings, without the user's servers."""
    from bloomery.flows.execution import reproduction
    from bloomery.tasks.infrastructure.python_processes import module_command
    from bloomery.tasks.infrastructure.tethered_process import start_tethered, stop_tethered

    provenance_path, outcome, log = folder / "provenance.json", folder / "outcome.json", folder / "log"
    provenance_path.write_text(provenance.model_dump_json(by_alias=True), encoding="utf-8")
    prefixes = ("PREFECT_", "MLFLOW_", "BENTOML_", "ATEN_", "ONEDNN_", "MKL_CBWR")
    unset = [word for name in os.environ if name.startswith(prefixes) for word in ("-u", name)]
    command = ["env", *unset, *module_command(reproduction.__name__, str(provenance_path), str(outcome))]
    with log.open("wb") as stream:
        process = start_tethered(command, stream, {"BLOOMERY_HOME": str(folder / "state")})
    try:
        process.wait()
    finally:
        stop_tethered(process)  # also if this process is interrupted
    return reproduction.read_outcome(outcome, log)


def _difference_error(
    provenance: Provenance, outcome: Reproduction | FailedReproduction, line: dict[str, Any] | None
) -> OutputDiffers:
    if outcome.kind == "failed":
        return OutputDiffers(
            f"{provenance.tag} could not be reproduced: {outcome.error['found']}",
            required="a run that completes, as the original one did",
            where=f"stage {outcome.stage}" if outcome.stage else "before the first stage",
            remedy=str(outcome.error.get("remedy") or "read the message above"),
        )
    assert line is not None
    causes = likely_causes(provenance, outcome.code, outcome.environment, line["stage"])
    return OutputDiffers(
        f"{line['stage']} is the first stage that differs: {line['content']} was {line['digest'][:16]}, and is now "
        f"{str(line['reproduced_digest'])[:16]}",
        required=f"the digests of {provenance.tag}",
        where=f"stage {line['stage']}; likely causes: {'; '.join(causes)}",
        remedy="reproduce it where these are as before; or, if none is named, inspect the outputs with --folder",
    )


def likely_causes(provenance: Provenance, code: dict[str, str], current: Environment, stage: str) -> list[str]:
    """Returns what has changed since the original run, the most likely cause first."""
    original = provenance.environment
    causes = ["the source has changed"] if stage == "ingest" else []
    if original.processor != current.processor:
        causes.append(f"threads or instruction set: {original.processor} then, {current.processor} now")
    packages = [
        f"{name} {original.packages.get(name, 'none')} then, {current.packages.get(name, 'none')} now"
        for name in sorted(original.packages.keys() | current.packages.keys())
        if original.packages.get(name) != current.packages.get(name)
    ]
    causes += [f"library versions: {', '.join(packages)}"] if packages else []
    locks = (original.lock_sha256, current.lock_sha256)
    if None not in locks and locks[0] != locks[1]:
        causes.append(f"another requirements.lock: {locks[0]:.16} then, {locks[1]:.16} now")
    if original.python != current.python:
        causes.append(f"Python {original.python} then, {current.python} now")
    if original.machine != current.machine or original.vector_flags != current.vector_flags:
        causes.append("another kind of processor")
    if stage == "package":
        causes.append("the code of the endpoint, which is part of the bento")
    elif provenance.code.get(stage) != code.get(stage) and not packages:
        causes.append(f"the code of the stage {stage}")
    return causes or ["none known: code, packages, threads and processor are unchanged"]
