"""The complete pipeline with its real engines, from rows to a served bento."""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest
import yaml
from filelock import FileLock

from bloomery.flows.recipe.recipe_files import RECIPES
from tests.processes import processes_of, responds, wait_for

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("ingest", "validate", "prepare", "train", "compress", "choose", "package", "promote")
Bloomery = Callable[..., subprocess.CompletedProcess[str]]
Environment = Callable[..., dict[str, str]]
FinishedRun = tuple[Path, dict[str, Any]]


def write_recipe(folder: Path, **changes: Any) -> str:
    """Writes the recipe `digits` with changed values, given as `training__epochs=3`."""
    document = yaml.safe_load((RECIPES / "digits.yaml").read_text())
    for key_path, value in changes.items():
        section = document
        *path, last_key = key_path.split("__")
        for key in path:
            section = section.setdefault(key, {})
        section[last_key] = value
    target = folder / "recipe.yaml"
    target.write_text(yaml.safe_dump(document))
    return str(target)


def outcomes(completed: subprocess.CompletedProcess[str]) -> dict[str, str]:
    words = [line.split() for line in completed.stdout.splitlines()]
    return {line[1]: line[2] for line in words if len(line) > 3 and line[1] in STAGES}


def test_a_run_ends_with_a_registered_champion(finished_run: FinishedRun, forked_bloomery: Bloomery) -> None:
    home, release = finished_run
    choice = release["bento"]["choice"]
    names = [candidate["name"] for candidate in choice["candidates"]["candidates"]]
    assert names == ["fp32", "int8", "pruned", "pruned-int8"]
    assert all(candidate["score"]["value"] > 0.95 for candidate in choice["candidates"]["candidates"])
    sizes = {candidate["name"]: candidate["size_bytes"] for candidate in choice["candidates"]["candidates"]}
    assert sizes["pruned-int8"] < sizes["pruned"] < sizes["int8"] < sizes["fp32"]
    chosen = choice["candidate"]
    # On a busy machine it may be fp32, since no other is shown to be faster.
    assert chosen["size_bytes"] <= sizes["fp32"]
    assert all(latency["ratio"]["high"] <= 1 for latency in chosen["latencies"] if latency["batch_size"] == 1)
    assert release["num_smoke_test_rows"] == 100
    version = json.loads(forked_bloomery(home, "show", "digits@champion", "--json").stdout)
    assert (version["version"], version["aliases"], version["bento"]) == (1, ["champion"], release["bento"]["tag"])
    assert [line["stage"] for line in version["lineage"]] == list(reversed(STAGES[:-1]))
    trained = choice["candidates"]["trained"]
    assert version["tags"]["data.digest"] == trained["dataset"]["digest"]
    assert version["tags"]["weights.sha256"] == trained["digest"]


def test_everything_is_written_into_the_state_folder(finished_run: FinishedRun) -> None:
    home, _ = finished_run
    assert {"stages", "mlflow", "prefect", "bentoml", "logs"} <= {path.name for path in home.iterdir()}
    assert not list((home / "stages" / ".tmp").iterdir())
    assert not (ROOT / "mlruns").exists()
    assert not processes_of(home)


def test_a_second_run_finds_every_stage_and_starts_no_server(
    finished_run: FinishedRun, bloomery: Bloomery, forked_bloomery: Bloomery
) -> None:
    home, release = finished_run
    with FileLock(home / "prefect.lock"):  # a run that starts a server would wait for it
        again = bloomery(home, "run", "digits")
    assert outcomes(again) == dict.fromkeys(STAGES, "found"), again.stdout
    assert json.loads(forked_bloomery(home, "run", "digits", "--json").stdout) == release


@pytest.fixture(scope="module")
def second_run(finished_run: FinishedRun, forked_bloomery: Bloomery) -> subprocess.CompletedProcess[str]:
    """A second run of the same recipe, with the Prefect server that tests share."""
    return forked_bloomery(finished_run[0], "run", "digits")


def test_a_run_ends_with_the_table_of_candidates_and_next_commands(
    finished_run: FinishedRun, second_run: subprocess.CompletedProcess[str]
) -> None:
    for words in ("pruned-int8", "chosen", "weakest", finished_run[1]["bento"]["tag"], "bloomery serve digits"):
        assert words in second_run.stdout
    assert "version 1 is champion" in second_run.stdout


def test_the_run_graph_in_prefect_is_a_line_of_eight_tasks(
    second_run: subprocess.CompletedProcess[str], prefect: str
) -> None:
    assert second_run.returncode == 0, second_run.stderr
    completed = {"name": {"like_": "digits v1 r"}, "state": {"type": {"any_": ["COMPLETED"]}}}
    with httpx.Client(base_url=prefect, trust_env=False, timeout=30) as api:
        runs = api.post("/flow_runs/filter", json={"flow_runs": completed, "sort": "END_TIME_DESC", "limit": 1}).json()
        graph = api.get(f"/flow_runs/{runs[0]['id']}/graph-v2").json()
    nodes = {node["id"]: node for _, node in graph["nodes"]}
    parents = {node["label"]: {nodes[parent["id"]]["label"] for parent in node["parents"]} for node in nodes.values()}
    assert parents == {stage: set(STAGES[place - 1 : place]) for place, stage in enumerate(STAGES)}


CHANGES: tuple[tuple[dict[str, Any], str | None], ...] = (
    ({"description": "other"}, None),
    ({"gates__min_accuracy": 0.9}, "promote"),
    ({"name": "other"}, "package"),
    ({"budget__size_bytes": 61_000}, "choose"),
    ({"compression__fine_tune__epochs": 3}, "compress"),
    ({"training__epochs": 3}, "train"),
    ({"features__split__salt": "other"}, "prepare"),
)


def test_a_change_computes_what_depends_on_it(
    finished_run: FinishedRun, forked_bloomery: Bloomery, tmp_path: Path
) -> None:
    for number, (changes, first) in enumerate(CHANGES):
        (tmp_path / str(number)).mkdir()
        completed = forked_bloomery(finished_run[0], "check", write_recipe(tmp_path / str(number), **changes), "--json")
        assert completed.returncode == 0, completed.stderr
        computed = [step["stage"] for step in json.loads(completed.stdout)["stages"] if step["digest"] is None]
        assert computed == ([] if first is None else list(STAGES[STAGES.index(first) :])), changes


def test_no_candidate_within_the_budget_ends_with_4_and_the_champion_stays(
    copy: Path, forked_bloomery: Bloomery, tmp_path: Path
) -> None:
    completed = forked_bloomery(copy, "run", write_recipe(tmp_path, budget__size_bytes=1000))
    assert completed.returncode == 4, completed.stderr
    assert "no candidate is within the budget" in completed.stderr
    assert re.search(r"pruned-int8: size 2\d\.\d kB, limit 1\.0 kB", completed.stderr), completed.stderr
    assert json.loads(forked_bloomery(copy, "show", "digits@champion", "--json").stdout)["version"] == 1


def test_a_missed_gate_ends_with_4_and_the_champion_stays(
    copy: Path, forked_bloomery: Bloomery, tmp_path: Path
) -> None:
    # Another candidate is chosen, so a second version is refused.
    recipe = write_recipe(tmp_path, compression__candidates=[{"name": "fp32"}], gates__min_accuracy=0.999)
    completed = forked_bloomery(copy, "run", recipe)
    assert completed.returncode == 4, completed.stderr
    assert "ReleaseRefused" in completed.stderr
    versions = json.loads(forked_bloomery(copy, "show", "digits", "--json").stdout)["versions"]
    assert [(version["version"], version["aliases"]) for version in versions] == [(2, []), (1, ["champion"])]
    assert versions[0]["release"].startswith("refused: accuracy is")


def test_a_bento_whose_predictions_differ_from_the_measured_ones_is_refused(
    copy: Path, forked_bloomery: Bloomery
) -> None:
    """The measured predictions are changed, with a matching record, so the bento's predictions differ."""
    champion_before = json.loads(forked_bloomery(copy, "show", "digits@champion", "--json").stdout)
    (path,) = (copy / "stages" / "compress").glob("*/pruned-int8-predictions.parquet")
    table = pq.read_table(path)
    labels = [(label + 1) % 10 for label in table["prediction"].to_pylist()]
    pq.write_table(table.set_column(table.schema.get_field_index("prediction"), "prediction", [labels]), path)
    record = json.loads((path.parent / "record.json").read_text())
    entry = {"size_bytes": path.stat().st_size, "sha256": _sha256(path)}
    record["files"][path.name] = entry
    (path.parent / "record.json").write_text(json.dumps(record))
    shutil.rmtree(copy / "stages" / "promote")
    completed = forked_bloomery(copy, "run", "digits")
    assert completed.returncode == 4, completed.stdout + completed.stderr
    assert "for the row with id 0 the bento predicts 0" in completed.stderr
    champion_after = json.loads(forked_bloomery(copy, "show", "digits@champion", "--json").stdout)
    assert (champion_after["version"], champion_after["aliases"]) == (champion_before["version"], ["champion"])


def _sha256(path: Path) -> str:
    from bloomery.data_contracts.documents.digests import digest_of_file

    return digest_of_file(path)


def test_a_damaged_bento_is_packaged_again(copy: Path, forked_bloomery: Bloomery) -> None:
    (model,) = (copy / "bentoml" / "bentos" / "digits").glob("*/src/artifacts/model.onnx")
    content = model.read_bytes()
    model.write_bytes(content[:-1])
    completed = forked_bloomery(copy, "run", "digits")
    assert completed.returncode == 0, completed.stderr
    assert outcomes(completed)["package"] == "computed"
    assert model.read_bytes() == content


@pytest.fixture(scope="module")
def endpoint(finished_run: FinishedRun, clean_environment: Environment) -> Iterator[httpx.Client]:
    """A client of the champion behind `bloomery serve`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "bloomery.flows.cli", "serve", "digits", "--port", str(port), "--json"],
        env=clean_environment(finished_run[0]),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert server.stdout is not None
        assert json.loads(server.stdout.readline())["bento"] == finished_run[1]["bento"]["tag"]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=10) as client:
            wait_for(lambda: responds(f"http://127.0.0.1:{port}/readyz"), timeout_s=60)
            yield client
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=30)


def test_the_served_champion_predicts_valid_rows_and_rejects_invalid_ones(
    endpoint: httpx.Client, finished_run: FinishedRun
) -> None:
    home, release = finished_run
    choice = release["bento"]["choice"]
    valid_rows = pq.read_table(home / choice["candidates"]["trained"]["dataset"]["valid_rows"]["uri"])
    predictions = pq.read_table(home / choice["candidate"]["predictions_uri"]).slice(0, 50).to_pylist()
    images = dict(zip(valid_rows["id"].to_pylist(), valid_rows["image"].to_pylist(), strict=True))
    rows = [{"image": images[row["id"]]} for row in predictions]
    response = endpoint.post("/predict", json={"rows": rows})
    assert response.status_code == 200
    labels = [prediction["label"] for prediction in response.json()["predictions"]]
    assert labels == [row["prediction"] for row in predictions]
    assert response.json()["model"] == release["bento"]["tag"]
    explain_response = endpoint.post(
        "/explain", json={"rows": rows[:2]}, timeout=60
    ).json()  # includes the import of shap
    assert explain_response["model"] == response.json()["model"]
    for explanation, prediction in zip(explain_response["explanations"], response.json()["predictions"], strict=False):
        assert explanation["output"] == pytest.approx(prediction["probabilities"][str(explanation["label"])], abs=1e-3)
        assert explanation["base_value"] + explanation["contributions"]["image"] == pytest.approx(explanation["output"])
        assert sum(region["contribution"] for region in explanation["regions"]) == pytest.approx(
            explanation["output"] - explanation["base_value"]
        )
    pixels = rows[0]["image"]
    invalid_requests: list[tuple[Any, str]] = [
        (
            [{"image": [99, *pixels[1:]]}],
            "row 0, column image[0]: found 99, but input should be less than or equal to 16",
        ),
        ([{"image": pixels}, {"image": pixels[1:]}], "row 1, column image: found an array of 63 values"),
        ([{}], "row 0, column image: found no value, but the column is required"),
        ([{"image": pixels, "label": 3}], "column label: found 3, but the contract has no such column"),
        ([{"image": ["1", *pixels[1:]]}], "column image[0]: found '1'"),
        ([{"image": [True, *pixels[1:]]}], "column image[0]: found True"),
        ([{"image": [1.5, *pixels[1:]]}], "column image[0]: found 1.5"),
        ([{"image": None}], "column image: found None"),
        ([], "the request: found an array of 0 values"),
    ]
    for invalid_rows, message in invalid_requests:
        response = endpoint.post("/predict", json={"rows": invalid_rows})
        assert response.status_code == 422, response.text
        assert message in response.json()["error"]
        assert response.json()["problems"][0]["rule"]
    for body in (b"", b"{", b'{"rows": [{"image": [NaN]}]}', b'{"rows": 3}', b'{"other": []}'):
        response = endpoint.post("/predict", content=body, headers={"content-type": "application/json"})
        assert 400 <= response.status_code < 500, (body, response.text)


def test_the_served_champion_describes_itself_and_does_not_count_unknown_paths(endpoint: httpx.Client) -> None:
    card, document = endpoint.get("/info").json(), endpoint.get("/openapi.json").json()
    assert card["model"] == document["info"]["version"]
    example = document["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["example"]
    predictions = endpoint.post("/predict", json=example).json()["predictions"]
    assert predictions[0]["label"] == card["example"]["prediction"]["label"]
    assert endpoint.get("/docs").is_success
    assert endpoint.get("/docs/swagger-ui.css").is_success
    # BentoML's own clients read what there is to call.
    assert [route["name"] for route in endpoint.get("/schema.json").json()["routes"]] == ["predict"]
    metrics_before = endpoint.get("/metrics").text
    for number in range(20):
        assert endpoint.get(f"/nowhere-{number}").status_code == 404
    metrics_after = endpoint.get("/metrics").text
    assert 'bloomery_requests_total{status="200"}' in metrics_after
    assert len(metrics_after.splitlines()) <= len(metrics_before.splitlines()) + 4  # the path /metrics is counted, too


def test_a_body_beyond_the_limit_is_rejected_with_and_without_content_length(endpoint: httpx.Client) -> None:
    long = b" " * 17_000_000
    headers = {"content-type": "application/json"}
    response = endpoint.post("/predict", content=long, headers=headers)
    chunked_response = endpoint.post("/predict", content=iter([long[:9_000_000]] * 2), headers=headers)
    assert (response.status_code, chunked_response.status_code) == (413, 413)
    assert endpoint.get("/livez").is_success


def test_bentoml_has_what_the_endpoint_relies_on() -> None:
    """`EndpointService` relies on undocumented behaviour of BentoML: an upgrade that removes it fails here."""
    import inspect

    import bentoml
    from _bentoml_sdk import Service

    assert "service_class" in inspect.signature(bentoml.service).parameters
    assert list(inspect.signature(Service.to_asgi).parameters) == ["self", "is_main"]
