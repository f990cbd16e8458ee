"""The command line as a user calls it: exit codes, JSON and error messages."""

import io
import json
import re
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from bloomery.data_contracts.records.records import Release
from bloomery.flows.cli.display import print_release
from bloomery.flows.cli.main import app
from bloomery.flows.recipe.recipe_files import RECIPES

Bloomery = Callable[..., subprocess.CompletedProcess[str]]
DIGITS = (RECIPES / "digits.yaml").read_text()


def recipe(folder: Path, *edits: tuple[str, str]) -> str:
    text = DIGITS
    for old, new in edits:
        assert old in text
        text = text.replace(old, new, 1)
    path = folder / "recipe.yaml"
    path.write_text(text)
    return str(path)


def data(folder: Path, num_rows: int, label: Callable[[int], int]) -> tuple[str, str]:
    """Returns an edit of the recipe that names a Parquet file of `num_rows` images."""
    rows = [{"id": n, "image": [n % 17, n // 17 % 17] * 32, "label": label(n)} for n in range(num_rows)]
    schema = pa.schema([("id", pa.int64()), ("image", pa.list_(pa.uint8())), ("label", pa.int64())])
    pq.write_table(pa.Table.from_pylist(rows, schema), folder / "rows.parquet")
    return "source: sklearn:digits", "source: rows.parquet"


def require_clear(completed: subprocess.CompletedProcess[str], code: int, *messages: str) -> None:
    """Checks the exit code, and that the error has all its parts."""
    assert completed.returncode == code, completed.stdout + completed.stderr
    for words in (*messages, "required:", "where:", "do:"):
        assert words in completed.stderr
    assert "Traceback" not in completed.stderr


def test_help_names_every_command(bloomery: Bloomery, tmp_path: Path) -> None:
    completed = bloomery(tmp_path, "--help")
    assert completed.returncode == 0
    for command in app.registered_commands:
        assert command.callback is not None
        assert command.callback.__name__ in completed.stdout


def test_every_command_takes_json() -> None:
    for command in app.registered_commands:
        assert command.callback is not None
        assert "as_json" in command.callback.__annotations__


def test_bad_usage_ends_with_2(bloomery: Bloomery, tmp_path: Path) -> None:
    assert bloomery(tmp_path, "run").returncode == 2
    assert bloomery(tmp_path, "fly").returncode == 2
    assert not (tmp_path / "stages").exists()


def test_an_unknown_recipe_ends_with_2(bloomery: Bloomery, tmp_path: Path) -> None:
    require_clear(bloomery(tmp_path, "check", "nope"), 2, "there is no recipe 'nope'", "digits")


def test_an_unknown_key_ends_with_2_before_anything_is_started(bloomery: Bloomery, tmp_path: Path) -> None:
    path = recipe(tmp_path, ("epochs: 30", "epocs: 30"))
    require_clear(bloomery(tmp_path / "home", "run", path), 2, "did you mean 'epochs'?", "recipe.yaml:")
    assert not (tmp_path / "home" / "prefect").exists()


@pytest.mark.parametrize("command", ["check", "run"])
def test_a_missing_exporter_ends_with_1_before_anything_starts(
    command: str, bloomery: Bloomery, tmp_path: Path
) -> None:
    path = recipe(tmp_path, ("compression:", "compression:\n  extra_formats: [litert]"))
    completed = bloomery(tmp_path / "home", command, path)
    require_clear(
        completed, 1, "networks cannot be exported to LiteRT", "BLOOMERY_LITERT_PYTHON", "pip install litert-torch"
    )
    assert not (tmp_path / "home" / "prefect").exists()


@pytest.mark.skipif(Path("/sys/class/powercap/intel-rapl:0").exists(), reason="this machine may report its energy")
def test_an_objective_that_cannot_be_measured_here_ends_with_1_before_anything_is_started(
    bloomery: Bloomery, tmp_path: Path
) -> None:
    completed = bloomery(tmp_path / "home", "run", recipe(tmp_path, ("objective: balanced", "objective: energy")))
    require_clear(completed, 1, "energy cannot be measured", "/sys/class/powercap", "weigh latency")
    assert not (tmp_path / "home" / "prefect").exists()


def test_an_error_as_json_is_one_document(bloomery: Bloomery, tmp_path: Path) -> None:
    completed = bloomery(tmp_path / "home", "run", recipe(tmp_path, ("epochs: 30", "epocs: 30")), "--json")
    document = json.loads(completed.stdout)
    assert (completed.returncode, document["exit_code"], document["error"]) == (2, 2, "RecipeInvalid")


def test_an_unwritable_state_folder_ends_with_1(bloomery: Bloomery, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    completed = bloomery(tmp_path / "file" / "home", "run", "digits")
    require_clear(completed, 1, "StateUnwritable", "BLOOMERY_HOME", str(tmp_path / "file" / "home"))


@pytest.mark.slow
def test_missing_data_ends_with_2(bloomery: Bloomery, forked_bloomery: Bloomery, tmp_path: Path) -> None:
    path = recipe(tmp_path, ("source: sklearn:digits", "source: nowhere.parquet"))
    require_clear(forked_bloomery(tmp_path / "home", "check", path), 2, str(tmp_path / "nowhere.parquet"))
    require_clear(bloomery(tmp_path / "home", "run", path), 2, str(tmp_path / "nowhere.parquet"))
    assert not (tmp_path / "home" / "stages").exists()


@pytest.mark.slow
def test_a_violated_contract_ends_with_3_and_shows_the_rows(forked_bloomery: Bloomery, tmp_path: Path) -> None:
    path = recipe(tmp_path, data(tmp_path, 200, lambda n: n % 12))
    completed = forked_bloomery(tmp_path / "home", "run", path)
    require_clear(completed, 3, "ContractBroken", "label: must be one of", "quarantine")
    assert "✗ validate" in completed.stdout
    assert not list((tmp_path / "home" / "stages" / ".tmp").iterdir())
    # Outputs of earlier stages are kept, and found by the next run.
    assert "= ingest    found" in forked_bloomery(tmp_path / "home", "run", path).stdout


@pytest.mark.slow
def test_an_empty_data_set_and_a_single_class_end_with_3(forked_bloomery: Bloomery, tmp_path: Path) -> None:
    path = recipe(tmp_path, data(tmp_path, 0, lambda n: 0))
    require_clear(forked_bloomery(tmp_path / "home", "run", path), 3, "the data has no rows")
    path = recipe(tmp_path, data(tmp_path, 200, lambda n: 4))
    require_clear(forked_bloomery(tmp_path / "home", "run", path), 3, "1 class(es): 4")


@pytest.mark.slow
def test_a_port_in_use_ends_with_1_and_names_the_owner(bloomery: Bloomery, tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        require_clear(bloomery(tmp_path, "serve", "digits", "--port", str(port)), 1, "PortInUse", str(port), "pid")


@pytest.mark.slow
def test_show_and_serve_of_an_unknown_name_end_with_2(forked_bloomery: Bloomery, tmp_path: Path) -> None:
    require_clear(
        forked_bloomery(tmp_path / "home", "show", "nope"), 2, "the registry has no 'nope'", "there is none yet"
    )
    require_clear(forked_bloomery(tmp_path / "home", "show", "nope@champion"), 2, "nope@champion")
    require_clear(forked_bloomery(tmp_path / "home", "serve", "nope"), 2, "nope")


@pytest.mark.slow
def test_doctor_passes_on_this_machine(bloomery: Bloomery, tmp_path: Path) -> None:
    completed = bloomery(tmp_path / "home", "doctor", "--json")
    findings = {finding["name"]: finding for finding in json.loads(completed.stdout)}
    assert completed.returncode == 0
    assert all(finding["passed"] for finding in findings.values())
    assert {"python", "java", "disk", "gpu", "port 3000", "state folder", "torch"} <= set(findings)


@pytest.mark.slow
def test_doctor_ends_with_1_where_a_run_would_fail(bloomery: Bloomery, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    completed = bloomery(tmp_path / "file" / "home", "doctor", "--json")
    assert completed.returncode == 1
    assert not {f["name"]: f["passed"] for f in json.loads(completed.stdout)}["state folder"]


def test_an_error_message_has_no_traceback(bloomery: Bloomery, tmp_path: Path) -> None:
    completed = bloomery(tmp_path / "home", "check", "nope")
    assert not re.search(r'File ".*\.py", line', completed.stderr)


def test_next_commands_repeat_the_recipe_argument_and_labels_may_contain_brackets(release: Release) -> None:
    """A recipe elsewhere is not found by its name, and `[/]` would be terminal markup."""
    example = json.dumps({"key": "[k]", "label": "[/x]", "probability": 0.9, "truth": "[b]"})
    out = io.StringIO()
    changed = release.model_copy(update={"example": example})
    print_release(Console(file=out, width=200), changed, 1.0, "my recipes/mine.yaml", "2019-02")
    output = out.getvalue()
    assert f"bloomery serve {release.name} " in output
    assert "bloomery check 'my recipes/mine.yaml' --period 2019-02 " in output
    assert "held-out row [k]: [/x] with probability 0.900; the true label is [b]" in output
