"""The Python API: `import bloomery`, and commands that are called in a running event loop, as in a notebook."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import bloomery
from bloomery.data_contracts import errors
from bloomery.data_contracts.errors import ContractBroken, DataMissing, DataUnfit, SettingInvalid
from bloomery.data_contracts.records.records import Release
from bloomery.flows.python_api import command_process, commands, models, state_folder
from bloomery.tasks.tracking import mlflow_runs
from tests.conftest import copy_state

ROOT = Path(__file__).resolve().parents[3]


def in_event_loop(call: Callable[[], Any]) -> Any:
    """Calls a function as a cell of a notebook does: inside a running event loop."""

    async def cell() -> Any:
        return call()

    return asyncio.run(cell())


def test_the_package_offers_the_api_and_its_rooms() -> None:
    assert {"init", "run", "load", "Model", "BloomeryError", "models", "flows"} <= set(dir(bloomery))
    assert bloomery.BloomeryError is errors.BloomeryError
    for name in bloomery.__all__:
        assert getattr(bloomery, name) is not None
    with pytest.raises(AttributeError, match="module 'bloomery' has no attribute 'fit'"):
        bloomery.fit  # noqa: B018


def test_importing_it_sets_no_variable_of_other_engines() -> None:
    code = (
        "import json, os\n"
        "before = dict(os.environ)\n"
        "import bloomery, bloomery.models\n"
        "assert dict(os.environ) == before\n"
        "bloomery.init, bloomery.run, bloomery.load, bloomery.tasks\n"
        "print(json.dumps(sorted(set(os.environ) - set(before))))\n"
    )
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    command = [sys.executable, "-c", code]
    completed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr
    added = json.loads(completed.stdout)
    assert added == ["BENTOML_HOME", "BLOOMERY_HOME", "MLFLOW_DISABLE_TELEMETRY", "ORT_DISABLE_TELEMETRY"]


def test_an_older_bento_uses_its_own_rooms(tmp_path: Path) -> None:
    (tmp_path / "bloomery" / "models").mkdir(parents=True)
    (tmp_path / "bloomery" / "models" / "__init__.py").write_text("IS_PACKAGED = True\n")
    (tmp_path / "artifacts").mkdir()
    code = "import sys; sys.path.insert(0, sys.argv[1]); import bloomery.models as m; print(hasattr(m, 'IS_PACKAGED'))"
    command = [sys.executable, "-P", "-c", code, str(tmp_path)]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "False\n"  # any other folder
    (tmp_path / "artifacts" / "manifest.json").touch()
    assert subprocess.run(command, capture_output=True, text=True).stdout == "True\n"


def test_options_of_the_command_are_keywords() -> None:
    options = {"key": "id", "delimiter": ";", "columns": ["a", "b"], "missing": ["-", "?"], "header": False}
    assert commands._to_arguments({**options, "decimal": None, "skip_lines": 2}) == [
        *("--key", "id", "--delimiter", ";", "--columns", "a,b", "--missing", "-", "--missing", "?"),
        *("--no-header", "--skip-lines", "2"),
    ]
    with pytest.raises(SettingInvalid, match="there is no option delimeter"):
        commands._to_arguments({"delimeter": ";"})


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("data/Wine Quality.csv", "wine-quality"),
        (["train=a/First_1.parquet", "test=b.csv"], "first-1"),
        ("sklearn:diabetes", "diabetes"),
        (Path("rows.csv.gz"), "rows"),
    ],
)
def test_a_model_is_named_for_its_file(data: Any, name: str) -> None:
    assert commands._name_of(data) == name


def test_a_table_needs_a_name() -> None:
    frame = pd.DataFrame({"a": [1]})
    for data, kind in ((frame, "DataFrame"), ([frame], "list"), ({"train": frame, "test": "b.csv"}, "dict")):
        with pytest.raises(SettingInvalid, match=f"a {kind} has no name"):
            bloomery.init(data, label="a")


def test_several_tables_need_a_split_each(tmp_path: Path) -> None:
    """Their files would have one name: the second would replace the first."""
    frame = pd.DataFrame({"a": [1]})
    for data in ([frame, frame], [frame, "rows.csv"]):
        with pytest.raises(SettingInvalid, match="a list of 2 tables or paths, and the tables have no names"):
            bloomery.init(data, label="a", name="x", output=tmp_path, force=True)
    assert list(tmp_path.iterdir()) == []


def test_errors_of_a_command_are_exceptions() -> None:
    document = {"found": "f", "required": "r", "where": "w", "remedy": "m", "exit_code": 3}
    error = command_process._error_of({"error": "DataUnfit", **document})
    assert isinstance(error, DataUnfit)
    assert str(error) == "f\n  required: r\n  where:    w\n  do:       m"
    unknown = command_process._error_of({"error": "ZeroDivisionError", "found": "division by zero", "exit_code": 1})
    assert type(unknown) is errors.BloomeryError
    assert "ZeroDivisionError: division by zero" in str(unknown)
    usage = command_process._usage_error(2, ["Usage: bloomery init", "╭─ Error ─╮", "│ Invalid value │"], ("init",))
    assert isinstance(usage, SettingInvalid)
    assert usage.found == "Invalid value"
    assert "ended with -9" in str(command_process._usage_error(-9, [], ("run",)))


def test_a_frame_is_written_beside_its_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, ...]] = []

    def answer(*arguments: str) -> dict[str, Any]:
        calls.append(arguments)
        if "colour" in arguments:
            raise DataUnfit("no column colour", required="a column", where="the data", remedy="name another")
        counts = {"num_rows": 2, "num_quarantined": 1, "num_columns": 2}
        files = {name: str(tmp_path / f"sizes.{name}") for name in ("recipe", "contract")}
        return {**files, **counts, "inferred": [{"name": "<key>", "value": "size"}]}

    monkeypatch.setattr(commands, "call_command", answer)
    frame = pd.DataFrame({"size": [1, 2], "kind": ["small", "large"]})
    draft = bloomery.init(frame, label="kind", name="sizes", output=tmp_path, key="size")
    arguments = ("--label", "kind", "--output", str(tmp_path), "--key", "size")
    assert calls == [("init", "sizes", *arguments, "--data", str(tmp_path / "sizes.parquet"))]
    assert pq.read_table(tmp_path / "sizes.parquet").to_pylist() == frame.to_dict("records")
    assert "sizes: 2 rows, 2 columns, at most 1 to be quarantined" in draft._repr_html_()
    assert "&lt;key&gt;" in draft._repr_html_()
    assert "written:" in str(draft)
    with pytest.raises(errors.StateUnwritable, match=r"sizes\.parquet exists already"):
        bloomery.init(frame, label="kind", name="sizes", output=tmp_path)
    bloomery.init(frame, label="kind", name="sizes", output=tmp_path, force=True)
    assert "--force" in calls[-1]
    with pytest.raises(DataUnfit, match="no column colour"):
        bloomery.init(frame, label="colour", name="other", output=tmp_path)
    assert not (tmp_path / "other.parquet").exists()
    (tmp_path / "kept.parquet").touch()  # perhaps the only copy of the rows
    with pytest.raises(DataUnfit, match="no column colour"):
        bloomery.init(frame, label="colour", name="kept", output=tmp_path, force=True)
    assert (tmp_path / "kept.parquet").exists()
    bloomery.init(["train=a.csv", Path("b.csv")], label="kind", name="files", output=tmp_path)
    assert calls[-1][-4:] == ("--data", "train=a.csv", "--data", "b.csv")
    bloomery.init({"train": frame, "test": "b.csv"}, label=["kind", "size"], name="split", output=tmp_path)
    assert calls[-1][-4:] == ("--data", f"train={tmp_path / 'split-train.parquet'}", "--data", "test=b.csv")
    assert calls[-1][2:6] == ("--label", "kind", "--label", "size")


@pytest.mark.parametrize(
    ("data", "message"),
    [(5, "a int"), ([], "empty"), ({"a": [1, 2]}, "a list"), ([{"a": 1}], "a dict"), (None, "a NoneType")],
)
def test_other_data_is_refused(data: Any, message: str) -> None:
    with pytest.raises(SettingInvalid, match=f"the data is {message}"):
        bloomery.init(data, label="a", name="other")


@pytest.mark.slow
def test_a_recipe_runs_in_a_running_event_loop_and_its_version_predicts(
    finished_run: tuple[Path, dict[str, Any]],
    home: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import mlflow

    copy_state(finished_run[0], home)
    tracking = mlflow.get_tracking_uri()
    model = in_event_loop(lambda: bloomery.run("digits"))
    assert "promote   found" in capsys.readouterr().out
    assert (model.name, model.version) == ("digits", 1)
    assert "digits version 1" in model._repr_html_()
    assert "digits version 1" in repr(model)
    assert model.card.markdown.startswith("# ")
    assert model.candidates.picture is not None
    assert "fp32" in str(model.candidates)
    release = Release.model_validate(finished_run[1])
    counts = model.confusion_matrix.counts
    assert counts.sum() == release.bento.choice.candidates.trained.dataset.test.num_rows
    score = release.bento.choice.candidate.score.value
    assert counts.trace() / counts.sum() == pytest.approx(score)

    loaded = bloomery.load("digits@champion")
    rows = [{"image": [number % 17 for number in range(64)]}, {"image": [0] * 64}]
    predictions = loaded.predict(pd.DataFrame(rows).assign(label=5))
    assert list(predictions.columns) == ["label", "probabilities"]
    assert loaded.predict(pa.Table.from_pylist(rows)).to_pylist() == predictions.to_dict("records")
    with pytest.raises(ContractBroken, match="row 1, column image") as refusal:
        loaded.predict(pd.DataFrame([rows[0], {"image": [17] * 64}]))
    assert refusal.value.problems[0]["row"] == 1
    monkeypatch.setattr(models, "load_local_version", lambda *_: None)  # as from a registry on another machine
    assert bloomery.load("digits@champion").predict(rows).equals(predictions)
    assert mlflow.get_tracking_uri() == tracking
    with pytest.raises(DataMissing, match="the registry has no nobody"):
        bloomery.load("nobody")


@pytest.mark.usefixtures("home")
def test_the_tracking_address_of_the_notebook_stays_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    def look_up() -> None:
        with pytest.raises(DataMissing):
            bloomery.load("nobody")

    unset: Any = None
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(unset)
    look_up()
    assert not mlflow.is_tracking_uri_set()
    for address in ("http://127.0.0.1:9", "http://127.0.0.1:10"):  # each is set after a look-up
        os.environ["MLFLOW_TRACKING_URI"] = address
        assert mlflow.get_tracking_uri() == address
        look_up()
    mlflow.set_tracking_uri("http://127.0.0.1:11")
    look_up()
    assert mlflow.get_tracking_uri() == os.environ["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:11"
    mlflow.set_tracking_uri(unset)


def test_a_version_of_another_tool_is_refused(home: Path) -> None:
    client = mlflow_runs.client()
    client.create_registered_model("foreign")
    client.create_model_version("foreign", source=str(home))
    with pytest.raises(DataUnfit, match="foreign version 1 was not registered by Bloomery"):
        bloomery.load("foreign:1")


@pytest.mark.slow
def test_a_failing_command_raises_its_error(home: Path) -> None:
    with pytest.raises(DataMissing, match="nowhere"):
        bloomery.run("nowhere")


def test_a_call_uses_the_state_folder_that_is_set_then(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_folder, "_used_folder", home)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # the API leaves it to the user
    model = bloomery.Model("wine", 1, "wine:abc", "")
    other = tmp_path / "other"
    monkeypatch.setenv("BLOOMERY_HOME", str(other))
    with pytest.raises(DataMissing) as caught:
        bloomery.load("wine")
    assert str(other) in caught.value.where
    assert os.environ["BENTOML_HOME"] == str(other / "bentoml")
    for use in (lambda: model.card, lambda: model.candidates, lambda: model.predict([])):
        with pytest.raises(SettingInvalid, match="wine version 1 was loaded from the state folder "):
            use()
    monkeypatch.setenv("BENTOML_HOME", "/shared/bentos")  # which the user has set
    monkeypatch.setenv("BLOOMERY_HOME", str(home))
    assert state_folder.follow_state_folder() == home
    assert os.environ["BENTOML_HOME"] == "/shared/bentos"


def test_a_label_need_not_be_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, ...]] = []

    def refuse(*arguments: str) -> dict[str, Any]:
        calls.append(arguments)
        raise DataUnfit("no", required="", where="", remedy="")

    monkeypatch.setattr(commands, "call_command", refuse)
    for label in (1, "1", [1]):
        with pytest.raises(DataUnfit):
            bloomery.init(pd.DataFrame({0: [1], 1: [2]}), label=label, name="x", output=tmp_path)
    assert {call[2:4] for call in calls} == {("--label", "1")}
    with pytest.raises(SettingInvalid, match="the data is a Lazy") as caught:
        bloomery.init(type("Lazy", (), {"collect": None})(), label="a", name="x")
    assert caught.value.remedy == "compute it with .collect()"


def test_a_notebook_prints_the_text_of_an_error_and_no_traceback() -> None:
    from IPython.core.interactiveshell import InteractiveShell

    code = (
        "from bloomery.data_contracts.errors import DataMissing\n"
        "raise DataMissing('no rows', required='rows', where='here', remedy='add some')"
    )
    shell = InteractiveShell()
    with contextlib.redirect_stdout(io.StringIO()) as output:
        shell.run_cell(code)
    assert output.getvalue() == "DataMissing: no rows\n  required: rows\n  where:    here\n  do:       add some\n"
