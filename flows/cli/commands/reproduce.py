"""`bloomery reproduce`: a version is made again from nothing but what it carries, and every digest is compared."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bloomery.data_contracts.errors import OutputDiffers
from bloomery.flows.cli.exit_codes import at_work

if TYPE_CHECKING:
    from bloomery.data_contracts.records.provenance import Origin, Step, Surroundings
    from bloomery.flows.execution.reproduction import Broken, Rebuilt


def reproduce(
    version: Annotated[str, typer.Argument(help="NAME:VERSION, NAME for the champion, or a bento's folder or file.")],
    folder: Annotated[Path | None, typer.Option(help="An empty folder to work in, which is kept.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")] = False,
) -> None:
    """Make a version again in an empty state folder, and compare every digest on the way."""
    with at_work(as_json, "reproduce") as out:
        from bloomery.tasks.registry.bento_provenance import read_origin

        origin = read_origin(version)
        place = _empty(folder)
        try:
            made = _rebuilt(origin, place)
        finally:
            if folder is None:
                shutil.rmtree(place, ignore_errors=True)
        lines = [] if made.kind == "broken" else list(compared(origin, made.steps))
        differing = next((line for line in lines if not line["is_equal"]), None)
        if not as_json:
            for line in lines:
                mark = "[green]=[/]" if line["is_equal"] else "[red]≠[/]"
                out.print(f"{mark} {line['stage']:<9} {line['what']:<32} {line['digest'][:16]}")
        if differing is not None or made.kind == "broken":
            raise _differs(origin, made, differing)
        if as_json:
            document = {"version": origin.tag, "verdict": "identical", "guarantee": guarantee(origin), "steps": lines}
            out.file.write(json.dumps(document) + "\n")
        else:
            out.print(f"[bold]{origin.tag}: identical[/]\n{guarantee(origin)}")


def compared(origin: Origin, found: tuple[Step, ...]) -> Iterator[dict[str, Any]]:
    """Each digest of the version, and whether it came out again; up to the first that did not come at all."""
    from bloomery.data_contracts.records.provenance import Step, steps

    content = Step(stage="package", what="content of the bento", digest=origin.digest)
    again = {(step.stage, step.what): step.digest for step in found}
    for step in (*steps(origin.chosen), content):
        digest = again.get((step.stage, step.what))
        yield {**step.model_dump(), "found": digest, "is_equal": digest == step.digest}
        if digest is None:
            return


def guarantee(origin: Origin) -> str:
    """What may be expected of another run of the same recipe."""
    training = origin.recipe["training"]
    # Where the recipe lets a card be taken, torch without CUDA took none.
    may_be_a_card = training["device"] != "cpu" and "+cpu" not in origin.surroundings.processor
    if may_be_a_card or training["devices"] * training.get("nodes", 1) > 1:
        return (
            "Trained by several processes, or where a GPU may have been taken: equal bits are to be expected on the "
            "same cards, in the same number, with the same libraries."
        )
    return "Trained on a processor: equal bits are to be expected with the same lock, threads and instruction set."


def _empty(folder: Path | None) -> Path:
    from bloomery.data_contracts.errors import StateUnwritable

    if folder is None:
        return Path(tempfile.mkdtemp(prefix="bloomery-reproduce-"))
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise StateUnwritable(
            "the folder is not empty",
            required="an empty one, so that nothing is found that should be made",
            where=str(folder),
            remedy="name another one, or leave --folder out",
        )
    return folder.absolute()


def _rebuilt(origin: Origin, place: Path) -> Rebuilt | Broken:
    """What a process of its own makes of it, whose settings are its own; nobody's servers count."""
    from bloomery.flows.execution.reproduction import read_outcome
    from bloomery.tasks.infrastructure.tethered_process import start, stop

    told = place / "origin.json"
    told.write_text(origin.model_dump_json(by_alias=True), encoding="utf-8")
    ours = ("PREFECT_", "MLFLOW_", "BENTOML_", "ATEN_", "ONEDNN_", "MKL_CBWR")
    unset = [word for name in os.environ if name.startswith(ours) for word in ("-u", name)]
    outcome, log = place / "outcome.json", place / "log"
    command = ["env", *unset, sys.executable, "-m", "bloomery.flows.execution.reproduction", str(told), str(outcome)]
    with log.open("wb") as stream:
        process = start(command, stream, {"BLOOMERY_HOME": str(place / "state")})
    try:
        process.wait()
    finally:
        stop(process)  # also where this one is told to end
    return read_outcome(outcome, log)


def _differs(origin: Origin, made: Rebuilt | Broken, line: dict[str, Any] | None) -> OutputDiffers:
    if made.kind == "broken":
        where = f"stage {made.stage}" if made.stage else "before the first stage"
        return OutputDiffers(
            f"{origin.tag} could not be made again: {made.error['found']}",
            required="a run that comes to its end, as the one that made it",
            where=where,
            remedy=str(made.error.get("remedy") or "read the message above"),
        )
    assert line is not None
    causes = likely(origin, made.code, made.surroundings, line["stage"])
    return OutputDiffers(
        f"{line['stage']} is the first stage that differs: {line['what']} was {line['digest'][:16]}, and is "
        f"{str(line['found'])[:16]}",
        required=f"the digests of {origin.tag}",
        where=f"stage {line['stage']}; the likely cause: {'; '.join(causes)}",
        remedy="reproduce it where these are as they were; or, if none is named, keep what is made (--folder)",
    )


def likely(origin: Origin, code: dict[str, str], now: Surroundings, stage: str) -> list[str]:
    """What is other than it was, in the order in which it usually matters."""
    then = origin.surroundings
    causes = ["the source has changed"] if stage == "ingest" else []
    if then.processor != now.processor:
        causes.append(f"threads or instruction set: {then.processor} then, {now.processor} now")
    told = [
        f"{name} {then.packages.get(name, 'none')} then, {now.packages.get(name, 'none')} now"
        for name in sorted(then.packages.keys() | now.packages.keys())
        if then.packages.get(name) != now.packages.get(name)
    ]
    causes += [f"library versions: {', '.join(told)}"] if told else []
    if None not in (then.lock_sha256, now.lock_sha256) and then.lock_sha256 != now.lock_sha256:
        causes.append(f"another requirements.lock: {then.lock_sha256:.16} then, {now.lock_sha256:.16} now")
    if then.python != now.python:
        causes.append(f"Python {then.python} then, {now.python} now")
    if then.machine != now.machine or then.vector_flags != now.vector_flags:
        causes.append("another kind of processor")
    if stage == "package":
        causes.append("the code of the endpoint, which is a part of the bento")
    elif origin.code.get(stage) != code.get(stage) and not told:
        causes.append(f"the code of the stage {stage}")
    return causes or ["none is known: code, packages, threads and processor are as they were"]
