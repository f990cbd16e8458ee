"""Runs the same eight stages on `digits` with `bloomery run`, Kedro, Metaflow and ZenML, in turns.

    python benchmarks/orchestration/peers.py --kedro …/kedro/bin/python --metaflow …/metaflow/bin/python \
        --zenml …/zenml/bin/python [--rounds 1] [--warm]

Each peer has an environment of its own, since their requirements conflict. Packages that it lacks come from ours:

    for peer in kedro==1.7.0 metaflow==2.19.39 "zenml[local]==0.98.0"; do
        folder=/tmp/peers/$(echo $peer | cut -d= -f1 | cut -d[ -f1); python -m venv $folder
        $folder/bin/pip install "$peer"
        python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > $folder/lib/python3.11/site-packages/zz.pth
    done

(`python` is the interpreter with Bloomery). A peer that is not given, or that fails, is left out, and the output says
so.

Each tool runs in these states:

- cold: no stage outputs and no databases, neither ours nor the peer's (its own set-up command has run);
- warm, with --warm: all databases exist, no stage outputs, and nothing comes from a peer's cache;
- again: nothing changed.

It needs no network, disables all telemetry, and prints Markdown.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from resource_usage import (
    ROOT,
    CommandFailed,
    Usage,
    describe_machine,
    environment,
    format_rounds,
    format_table,
    median_ratio,
    run_command,
)

HERE = Path(__file__).resolve().parent
OURS = "bloomery run"
RERUN_BEHAVIOUR = {
    OURS: "looks up all stages, runs none",
    "Kedro": "runs every node; each finds its output in our stage store, since Kedro has no cache",
    "Metaflow": "runs every step in a process; each finds its output in our stage store, since Metaflow has no cache",
    "ZenML": "takes every step from its own cache",
}


class Runner(NamedTuple):
    """How a tool runs the stages. `set_up` runs once in the empty folder; `warm` replaces `run` if the tool caches."""

    name: str
    python: str
    run: list[str]
    set_up: list[str] | None = None
    warm: list[str] | None = None


def list_runners(kedro: str | None, metaflow: str | None, zenml: str | None) -> list[Runner]:
    runners = [Runner(OURS, sys.executable, ["-m", "bloomery.flows.cli", "run", "digits", "--json"])]
    if kedro:
        runners.append(Runner("Kedro", kedro, ["-m", "kedro", "run"], [str(HERE / "by_kedro.py"), "."]))
    if metaflow:
        runners.append(Runner("Metaflow", metaflow, [str(HERE / "by_metaflow.py"), "run"]))
    if zenml:
        script = str(HERE / "by_zenml.py")
        runners.append(
            Runner(
                "ZenML", zenml, [script], ["-c", "from zenml.cli.cli import cli; cli()", "init"], [script, "--no-cache"]
            )
        )
    return runners


def runner_environment(folder: Path) -> dict[str, str]:
    """Returns the environment of a runner: folders of its own, no telemetry, and our modules on the path."""
    return environment(
        folder / ".bloomery",
        PYTHONPATH=f"{ROOT / 'src'}:{HERE}",
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


def measure_runner(runner: Runner, folder: Path, states: list[str]) -> dict[str, Usage]:
    """Runs the stages in every state, in an empty folder that is removed afterwards.

    Raises:
        CommandFailed: a command failed, or a run has left no record of a release.
    """
    folder.mkdir(parents=True)
    variables, usages = runner_environment(folder), {}
    try:
        if runner.set_up:
            run_command([runner.python, *runner.set_up], variables, cwd=folder)
        stages = folder / ".bloomery" / "stages"
        for state in states:
            if state == "warm":
                shutil.rmtree(stages)
                shutil.rmtree(folder / ".bloomery" / "bentoml")
            arguments = runner.warm if state == "warm" and runner.warm else runner.run
            cwd = ROOT if runner.name == OURS else folder
            usages[state] = run_command([runner.python, *arguments], variables, cwd=cwd)
            if not list(stages.glob("promote/*/record.json")):
                raise CommandFailed(
                    f"{runner.name} has left no record of a release in {stages}/promote\n{usages[state].output[-2000:]}"
                )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return usages


def measure_prefect_import(python: str) -> float:
    """Measures the processor seconds of importing what our stages import of Prefect."""
    imports = "from prefect import Task; import prefect.context, prefect.states"
    with tempfile.TemporaryDirectory() as folder:
        variables = runner_environment(Path(folder))
        variables["PREFECT_HOME"] = folder
        with_prefect, without = (run_command([python, "-c", code], variables) for code in (imports, "pass"))
    return with_prefect.processor_s - without.processor_s


def format_results(rounds: list[dict[str, dict[str, Usage]]], names: list[str], states: list[str]) -> str:
    rows = []
    for state in states:
        for name in names:
            usages, baselines = ([result[runner][state] for result in rounds] for runner in (name, OURS))
            wall, processor = [usage.wall_s for usage in usages], [usage.processor_s for usage in usages]
            rows.append(
                [
                    f"{state}: {name}",
                    format_rounds(wall),
                    format_rounds(processor),
                    f"{median_ratio(wall, [usage.wall_s for usage in baselines]):.2f}x",
                    f"{median_ratio(processor, [usage.processor_s for usage in baselines]):.2f}x",
                ]
            )
    heads = ["run", "wall (s)", "processor (s)", f"wall / `{OURS}`", f"processor / `{OURS}`"]
    return format_table(heads, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for peer in ("kedro", "metaflow", "zenml"):
        parser.add_argument(f"--{peer}", metavar="PYTHON", help=f"the Python of {peer}'s environment")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--warm", action="store_true", help="measure the warm run too")
    options = parser.parse_args()
    runners = list_runners(options.kedro, options.metaflow, options.zenml)
    states = ["cold", *(["warm"] if options.warm else []), "again"]
    left_out = {name: "not given" for name in RERUN_BEHAVIOUR if name not in [runner.name for runner in runners]}
    rounds: list[dict[str, dict[str, Usage]]] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.rounds):
            rounds.append({})
            first = number % len(runners)  # each round starts with another runner
            for runner in runners[first:] + runners[:first]:
                if runner.name in left_out:
                    continue
                print(f"round {number + 1}: {runner.name}", file=sys.stderr)
                try:
                    rounds[-1][runner.name] = measure_runner(
                        runner, Path(folder) / f"{number}-{runner.name[:4]}", states
                    )
                except CommandFailed as error:
                    if runner.name == OURS:
                        raise SystemExit(str(error)) from None
                    left_out[runner.name] = "failed"
                    print(error, file=sys.stderr)
    names = [runner.name for runner in runners if runner.name not in left_out]
    print(f"{describe_machine(options.rounds)}\n\n{format_results(rounds, names, states)}\n")
    for name in names:
        print(f"- {name}, again: {RERUN_BEHAVIOUR[name]}.")
    for name, reason in left_out.items():
        print(f"- {name} is left out: {reason}.")
    if len(names) > 1:
        seconds = measure_prefect_import(sys.executable)
        print(
            f"- Our stages import Prefect in all tools: {seconds:.1f} processor seconds in every process that runs a "
            "stage. Kedro's and ZenML's runs have one such process, Metaflow's have eight."
        )


if __name__ == "__main__":
    main()
