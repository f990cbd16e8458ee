"""Runs the same eight stages on `digits` with `bloomery run`, Kedro, Metaflow and ZenML, in turns.

    python benchmarks/orchestration/peers.py --kedro …/kedro/bin/python --metaflow …/metaflow/bin/python \
        --zenml …/zenml/bin/python [--rounds 1] [--warm]

Each peer has its own environment, since their requirements conflict; it falls back to ours:

    for peer in kedro==1.7.0 metaflow==2.19.39 "zenml[local]==0.98.0"; do
        folder=/tmp/peers/$(echo $peer | cut -d= -f1 | cut -d[ -f1); python -m venv $folder
        $folder/bin/pip install "$peer"
        python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > $folder/lib/python3.11/site-packages/zz.pth
    done

(`python` is the interpreter with Bloomery). A peer that is not given, or that fails, is left out, and the output says
so.

- cold: no stage outputs and no databases, neither ours nor the peer's (its own set-up command has run);
- warm, with --warm: all databases exist, no stage outputs, and nothing comes from a peer's cache;
- again: nothing changed.

It needs no network, and all telemetry is off. It prints Markdown.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from spent import ROOT, Failed, Spent, environment, listed, machine, median_ratio, spend, table

HERE = Path(__file__).resolve().parent
OURS = "bloomery run"
HOW_AGAIN = {
    OURS: "looks up all stages, runs none",
    "Kedro": "runs every node; each finds its output in our store, for Kedro has no cache",
    "Metaflow": "runs every step in a process; each finds its output in our store, for Metaflow has no cache",
    "ZenML": "takes every step from its own cache",
}


class Form(NamedTuple):
    """One way of running the stages. `set_up` runs once in the empty folder; `warm` replaces `run` if it caches."""

    name: str
    python: str
    run: list[str]
    set_up: list[str] | None = None
    warm: list[str] | None = None


def forms(kedro: str | None, metaflow: str | None, zenml: str | None) -> list[Form]:
    wanted = [Form(OURS, sys.executable, ["-m", "bloomery.flows.cli", "run", "digits", "--json"])]
    if kedro:
        wanted.append(Form("Kedro", kedro, ["-m", "kedro", "run"], [str(HERE / "by_kedro.py"), "."]))
    if metaflow:
        wanted.append(Form("Metaflow", metaflow, [str(HERE / "by_metaflow.py"), "run"]))
    if zenml:
        script = str(HERE / "by_zenml.py")
        wanted.append(
            Form(
                "ZenML", zenml, [script], ["-c", "from zenml.cli.cli import cli; cli()", "init"], [script, "--no-cache"]
            )
        )
    return wanted


def told(folder: Path) -> dict[str, str]:
    """Returns the environment of a form: its own folders, no telemetry, our modules on the path."""
    return environment(
        folder / ".bloomery",
        PYTHONPATH=f"{ROOT}:{HERE}",
        HOME=str(folder),
        KEDRO_DISABLE_TELEMETRY="1",
        METAFLOW_HOME=str(folder / "metaflow"),
        METAFLOW_USER="benchmark",
        METAFLOW_DEFAULT_METADATA="local",
        METAFLOW_DEFAULT_DATASTORE="local",
        METAFLOW_DATASTORE_SYSROOT_LOCAL=str(folder / "metaflow-store"),
        ZENML_ANALYTICS_OPT_IN="false",
        ZENML_CONFIG_PATH=str(folder / "zenml"),
        ZENML_CUSTOM_SOURCE_ROOT=str(HERE),
        ZENML_ENABLE_REPO_INIT_WARNINGS="false",
    )


def one_form(form: Form, folder: Path, temperatures: list[str]) -> dict[str, Spent]:
    """Runs one form in every state, in an empty folder that is removed afterwards.

    Raises:
        Failed: a command of it did, or a first run has left no champion's record.
    """
    folder.mkdir(parents=True)
    variables, found = told(folder), {}
    try:
        if form.set_up:
            spend([form.python, *form.set_up], variables, cwd=folder)
        stages = folder / ".bloomery" / "stages"
        for temperature in temperatures:
            if temperature == "warm":
                shutil.rmtree(stages)
                shutil.rmtree(folder / ".bloomery" / "bentoml")
            arguments = form.warm if temperature == "warm" and form.warm else form.run
            cwd = ROOT if form.name == OURS else folder
            found[temperature] = spend([form.python, *arguments], variables, cwd=cwd)
            if not list(stages.glob("promote/*/record.json")):
                raise Failed(f"{form.name} has left no release\n{found[temperature].printed[-2000:]}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return found


def prefect_import_s(python: str) -> float:
    """Returns the extra processor seconds for importing what our stages import of Prefect."""
    imports = "from prefect import Task; import prefect.context, prefect.states"
    with tempfile.TemporaryDirectory() as folder:
        variables = told(Path(folder))
        variables["PREFECT_HOME"] = folder
        with_it, bare = (spend([python, "-c", code], variables) for code in (imports, "pass"))
    return with_it.processor_s - bare.processor_s


def printed(rounds: list[dict[str, dict[str, Spent]]], names: list[str], temperatures: list[str]) -> str:
    rows = []
    for temperature in temperatures:
        for name in names:
            spent = [one[name][temperature] for one in rounds]
            ours = [one[OURS][temperature] for one in rounds]
            wall, processor = [one.wall_s for one in spent], [one.processor_s for one in spent]
            rows.append(
                [
                    f"{temperature}: {name}",
                    listed(wall),
                    listed(processor),
                    f"{median_ratio(wall, [one.wall_s for one in ours]):.2f}x",
                    f"{median_ratio(processor, [one.processor_s for one in ours]):.2f}x",
                ]
            )
    return table(["run", "wall (s)", "processor (s)", "wall by ours", "processor by ours"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for peer in ("kedro", "metaflow", "zenml"):
        parser.add_argument(f"--{peer}", metavar="PYTHON", help=f"the Python of {peer}'s environment")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--warm", action="store_true", help="measure the warm run too")
    told_by = parser.parse_args()
    wanted = forms(told_by.kedro, told_by.metaflow, told_by.zenml)
    temperatures = ["cold", *(["warm"] if told_by.warm else []), "again"]
    left_out = {name: "not given" for name in HOW_AGAIN if name not in [form.name for form in wanted]}
    rounds: list[dict[str, dict[str, Spent]]] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(told_by.rounds):
            rounds.append({})
            turn = number % len(wanted)  # who begins changes from round to round
            for form in wanted[turn:] + wanted[:turn]:
                if form.name in left_out:
                    continue
                print(f"round {number + 1}: {form.name}", file=sys.stderr)
                try:
                    rounds[-1][form.name] = one_form(form, Path(folder) / f"{number}-{form.name[:4]}", temperatures)
                except Failed as failure:
                    if form.name == OURS:
                        raise SystemExit(str(failure)) from None
                    left_out[form.name] = "failed"
                    print(failure, file=sys.stderr)
    names = [form.name for form in wanted if form.name not in left_out]
    print(f"{machine(told_by.rounds)}\n\n{printed(rounds, names, temperatures)}\n")
    for name in names:
        print(f"- {name}, again: {HOW_AGAIN[name]}.")
    for name, why in left_out.items():
        print(f"- {name} is left out: {why}.")
    if len(names) > 1:
        print(
            f"- Our stages import Prefect, whoever runs them: {prefect_import_s(sys.executable):.1f} processor seconds "
            "in every process that runs a stage. Kedro's and ZenML's runs have one such process, Metaflow's eight."
        )


if __name__ == "__main__":
    main()
