"""Registration of recipes with Prefect, and its failures."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.flows.recipe.recipe_files import RECIPES, bundled_recipes
from bloomery.flows.services.prefect_deployments import failure_reason, main
from bloomery.flows.services.supervisor import RecipeRegistration


@pytest.fixture
def invalid_recipe(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nmodell: {}\n")
    return path


def test_an_invalid_recipe_is_reported_and_the_process_ends_with_its_exit_code(
    home: Path, invalid_recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Needs no server: recipes are read first."""
    monkeypatch.setattr(sys, "argv", ["registration", "digits", str(invalid_recipe)])
    with pytest.raises(SystemExit) as caught:
        main()
    output = capsys.readouterr().out
    assert caught.value.code == RecipeInvalid.exit_code == 2
    assert json.loads(output)["found"].startswith(f"the recipe {invalid_recipe} is invalid: ")
    assert failure_reason(f"a warning\n{output}") == json.loads(output)["found"]
    assert failure_reason("Traceback\n  File\nConnectError: no\n") == "ConnectError: no"
    assert failure_reason("") == "no output"


def test_a_failed_registration_is_reported_and_repeated_until_it_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The registration process is replaced by one that fails twice, then succeeds."""
    tries = tmp_path / "tries"
    code = (
        f"import pathlib, sys; p = pathlib.Path({str(tries)!r}); p.open('a').write('x');"
        'print(\'{"found": "the recipe mine is refused"}\'); sys.exit(2 if len(p.read_text()) < 3 else 0)'
    )
    start_process: Callable[..., subprocess.Popen[bytes]] = subprocess.Popen
    monkeypatch.setattr(
        "bloomery.flows.services.supervisor.subprocess.Popen",
        lambda command, **how: start_process([sys.executable, "-S", "-c", code], **how),
    )
    registration = RecipeRegistration(("mine",), tmp_path / "log")
    failures: list[tuple[int, str]] = []
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (registration.has_ended and not registration.as_documents()):
        registration.check("http://127.0.0.1:1/api")
        for service in registration.as_documents():
            assert (service.state, service.log) == ("failed", str(tmp_path / "log"))
            failures.append((service.restarts, service.reason))
        time.sleep(0.05)
    reason = "the deployments could not be registered: the recipe mine is refused"
    assert sorted(set(failures)) == [(1, reason), (2, reason)]
    registration.check("http://127.0.0.1:1/api")
    assert tries.read_text() == "xxx"


SHORT_FORMS = [
    {"model": "auto"},
    {"compression": "auto"},
    {"compression": {"search": True}},
    {"compression": {"candidates": [{"name": "fp32"}, {"name": "pruned", "prune": 0.5}]}},
    {"budget": {"accuracy_drop": "0.5pp", "size_bytes": 200_000, "objective": "latency"}},
]


def validate_parameters(parameters: dict[str, Any]) -> Any:
    """Validates run parameters by the schema of the deployments, as the server does."""
    from prefect.utilities.callables import parameter_schema
    from prefect.utilities.schema_tools import validate

    from bloomery.flows.pipeline import pipeline

    return validate({"recipe": "digits", **parameters}, parameter_schema(pipeline).model_dump_for_openapi())


@pytest.mark.parametrize("parameters", [*SHORT_FORMS, *bundled_recipes()], ids=str)
def test_run_parameters_accept_every_form_that_a_recipe_accepts(
    parameters: dict[str, Any] | str,
) -> None:
    if isinstance(parameters, str):
        document = yaml.safe_load((RECIPES / f"{parameters}.yaml").read_text())
        sections = ("model", "training", "compression", "budget", "gates")
        parameters = {name: document[name] for name in sections if name in document}
    assert validate_parameters(parameters) == []


def test_invalid_run_parameters_are_refused_before_a_run_is_created() -> None:
    for parameters in ({"model": "car"}, {"compression": {"candidates": [{"name": "a", "prune": 1.5}]}}):
        assert validate_parameters(parameters)
