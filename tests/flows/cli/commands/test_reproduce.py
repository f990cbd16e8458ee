"""A version is reproduced from its bento, and the first digest that differs is reported with its cause."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from bloomery.data_contracts.errors import OutputCorrupt
from bloomery.data_contracts.records.provenance import Provenance
from bloomery.data_contracts.records.records import Bento, Release
from bloomery.flows.cli.commands.reproduce import describe_guarantee, likely_causes
from bloomery.flows.execution.reproduction import pin_weight_bits
from bloomery.flows.order import run_stages
from bloomery.flows.recipe.recipe import Recipe, read_recipe
from bloomery.models.compression.config import Compression

FinishedRun = tuple[Path, dict[str, Any]]


@pytest.fixture
def bento(finished_run: FinishedRun, tmp_path: Path) -> Path:
    """Returns a copy of the finished version's bento."""
    return bento_in(finished_run, tmp_path)


def bento_in(finished_run: FinishedRun, tmp_path: Path) -> Path:
    home, release = finished_run
    source = home / "bentoml" / "bentos" / release["bento"]["tag"].replace(":", "/")
    shutil.copytree(source, tmp_path / "bento")
    return tmp_path / "bento"


@pytest.fixture
def origin(bento: Path) -> Provenance:
    return Provenance.model_validate_json((bento / "src" / "artifacts" / "provenance.json").read_text())


@pytest.mark.slow
def test_a_version_is_reproduced_bit_for_bit(
    quick_run: FinishedRun, forked_bloomery: Callable[..., Any], tmp_path: Path
) -> None:
    home, release = quick_run
    completed = forked_bloomery(home, "reproduce", "digits:1", "--folder", str(tmp_path / "again"), "--json")
    assert completed.returncode == 0, completed.stdout + completed.stderr
    document = json.loads(completed.stdout)
    assert (document["version"], document["verdict"]) == (release["bento"]["tag"], "identical")
    stages = list(dict.fromkeys(step["stage"] for step in document["steps"]))
    assert stages == ["ingest", "validate", "prepare", "train", "compress", "package"]
    assert all(step["reproduced_digest"] == step["digest"] for step in document["steps"])
    assert len([step for step in document["steps"] if step["stage"] == "compress"]) == 2
    assert document["steps"][-1]["digest"] == release["bento"]["digest"]
    assert list((tmp_path / "again" / "state" / "stages" / "train").iterdir())
    second = forked_bloomery(home, "reproduce", "digits:1", "--folder", str(tmp_path / "again"), "--json")
    assert "not empty" in json.loads(second.stdout)["found"]


@pytest.mark.slow
def test_the_first_stage_that_differs_is_reported_with_its_cause(
    quick_run: FinishedRun, forked_bloomery: Callable[..., Any], tmp_path: Path
) -> None:
    """The bento's folder records other weights, from another number of threads; there is no registry."""
    bento = bento_in(quick_run, tmp_path)
    path = bento / "src" / "artifacts" / "provenance.json"
    document = json.loads(path.read_text())
    document["choice"]["candidates"]["trained"]["digest"] = "0" * 64
    document["environment"] |= {"processor": "7 threads", "lock_sha256": "1" * 64}
    document["environment"]["packages"]["torch"] = "0.4.1"
    path.write_text(json.dumps(document))
    completed = forked_bloomery(tmp_path / "home", "reproduce", str(bento), "--json", forks_children=True)
    error = json.loads(completed.stdout)
    assert (completed.returncode, error["error"]) == (1, "OutputDiffers")
    assert error["found"].startswith("train is the first stage that differs: weights was 0000000000000000, and is ")
    for cause in (
        "likely causes: threads or instruction set: 7 threads then",
        "library versions: torch 0.4.1 then, ",
        "another requirements.lock: 1111111111111111 then, ",
    ):
        assert cause in error["where"]


CONTRACT = """
apiVersion: v3.1.0
kind: DataContract
id: wishes-for-a-test
name: wishes
version: 1.0.0
status: active
schema:
  - name: wishes
    properties:
      - {name: id, logicalType: integer, primaryKey: true, required: true}
      - {name: text, logicalType: string, required: true}
      - {name: wish, logicalType: string, required: true}
"""
RECIPE = """
name: wishes
data: {source: wishes.csv}
contract: wishes.odcs.yaml
features:
  key: id
  label: wish
  inputs: [{kind: text, column: text, tokenizer: byte_pairs, length: 8, vocabulary_size: 300}]
  split: {train: 0.6, val: 0.2, test: 0.2, salt: wishes}
training: {epochs: 2, explain: null, batch_size: 32, augment: {drop_tokens: 0.2}, ema: 0.9, device: cpu}
compression: {candidates: [{name: fp32}], latency_rounds: 20}
budget: {accuracy_drop: 1.0}
"""
WISHES = "id,text,wish\n" + "".join(
    f"{row},{'stop' if row % 2 else 'play'} song number {row},{row % 2}\n" for row in range(200)
)
NETWORKS = {
    "rnn": {"kind": "rnn", "hidden": 16, "num_layers": 2, "bidirectional": True, "embedding": 8, "dropout": 0.2},
    "transformer": {"kind": "transformer", "width": 16, "num_layers": 1, "num_heads": 2, "dropout": 0.2},
}


def package_wishes(folder: Path, kind: str) -> Bento:
    """Builds a bento of texts in `folder`, stage by stage in this process, and returns its record."""
    from bloomery.flows.stages import PLAIN_STAGES
    from bloomery.tasks.ingest.stage import locate_source

    (folder / "wishes.csv").write_text(WISHES)
    (folder / "wishes.odcs.yaml").write_text(CONTRACT)
    document = yaml.safe_load(RECIPE) | {"model": NETWORKS[kind]}
    document["training"]["num_threads"] = 2
    (folder / "wishes.yaml").write_text(yaml.safe_dump(document))
    recipe = read_recipe(str(folder / "wishes.yaml"))
    promote: Any = lambda bento, *_: Release.model_construct(bento=bento)  # noqa: E731
    stages = dataclasses.replace(PLAIN_STAGES, promote=promote)
    source = locate_source(recipe.data, recipe.contract.personal_columns)
    return run_stages(stages, recipe, source, None).bento


@pytest.mark.slow
@pytest.mark.nightly  # each day a CNN is reproduced
@pytest.mark.parametrize("kind", list(NETWORKS))
def test_networks_for_texts_are_reproduced(
    kind: str, home: Path, forked_bloomery: Callable[..., Any], tmp_path: Path
) -> None:
    from bloomery.tasks.bentos.bento_store import bento_folder

    packaged = package_wishes(tmp_path, kind)
    completed = forked_bloomery(tmp_path / "other", "reproduce", str(bento_folder(packaged.tag)), "--json")
    result = json.loads(completed.stdout)
    assert (completed.returncode, result["verdict"]) == (0, "identical"), result
    assert result["steps"][-1]["reproduced_digest"] == packaged.digest


@pytest.mark.slow
@pytest.mark.nightly  # each day a stage that differs is reported with its cause, by the same comparison
def test_a_changed_source_is_reported(home: Path, forked_bloomery: Callable[..., Any], tmp_path: Path) -> None:
    from bloomery.tasks.bentos.bento_store import bento_folder

    packaged = package_wishes(tmp_path, "transformer")
    (tmp_path / "wishes.csv").write_text(WISHES.replace("stop song", "stop it", 1))
    completed = forked_bloomery(tmp_path / "other", "reproduce", str(bento_folder(packaged.tag)), "--json")
    result = json.loads(completed.stdout)
    assert (completed.returncode, result["error"]) == (1, "OutputDiffers")
    assert result["found"].startswith("ingest is the first stage that differs: rows from the source was ")
    assert "likely causes: the source has changed" in result["where"]


def test_a_bento_contains_its_recipe_and_every_record(origin: Provenance, finished_run: FinishedRun) -> None:
    assert Recipe.model_validate(origin.recipe) == read_recipe("digits")
    assert (
        origin.choice.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        == finished_run[1]["bento"]["choice"]
    )
    assert origin.digest == finished_run[1]["bento"]["digest"]
    assert set(origin.code) == {"ingest", "validate", "prepare", "train", "compress"}
    assert {"torch", "pyarrow"} <= set(origin.environment.packages)
    assert origin.environment.lock_sha256 is not None


def test_an_exported_bento_contains_its_provenance(bento: Path, origin: Provenance, tmp_path: Path) -> None:
    from bloomery.tasks.registry.bento_provenance import read_provenance

    subprocess.run(["tar", "-czf", tmp_path / "one.bento", "-C", bento, "."], check=True)
    assert read_provenance(str(tmp_path / "one.bento")) == origin
    assert read_provenance(str(bento)) == origin
    archive = (tmp_path / "one.bento").read_bytes()
    for content in (archive[: len(archive) // 2], b"no archive", b""):
        (tmp_path / "broken.bento").write_bytes(content)
        with pytest.raises(OutputCorrupt, match="cannot be read"):
            read_provenance(str(tmp_path / "broken.bento"))


def test_likely_causes_are_ordered_by_likelihood(origin: Provenance) -> None:
    original = origin.environment
    causes = likely_causes(origin, origin.code, original, "train")
    assert causes == ["none known: code, packages, threads and processor are unchanged"]
    newer = original.model_copy(update={"packages": {**original.packages, "torch": "9.9"}})
    (cause,) = likely_causes(origin, origin.code, newer, "train")
    assert cause == f"library versions: torch {original.packages['torch']} then, 9.9 now"
    assert likely_causes(origin, {**origin.code, "train": "other"}, original, "train") == [
        "the code of the stage train"
    ]
    assert likely_causes(origin, origin.code, original, "ingest")[0] == "the source has changed"
    assert likely_causes(origin, origin.code, original, "package") == [
        "the code of the endpoint, which is part of the bento"
    ]


def test_candidates_keep_the_weight_bits_of_their_original_processor(origin: Provenance) -> None:
    recipe = Recipe.model_validate(origin.recipe)
    for flags, reduced in ((("avx2",), True), (("avx2", "avx512_vnni"), False)):
        compression = pin_weight_bits(origin.environment.model_copy(update={"vector_flags": flags}), recipe).compression
        assert compression.candidates is not None
        assert {candidate.reduce_range for candidate in compression.candidates if candidate.quantize} == {reduced}
    automatic = recipe.model_copy(update={"compression": Compression()})
    assert pin_weight_bits(origin.environment, automatic) == automatic


def test_the_guarantee_depends_on_cpu_or_gpu(origin: Provenance) -> None:
    assert "same lock file, threads and instruction set" in describe_guarantee(origin)
    environment = origin.environment.model_copy(update={"processor": "1 thread(s), AVX2, torch 2.13.0"})  # with CUDA
    assert "same GPUs" in describe_guarantee(origin.model_copy(update={"environment": environment}))
    training = {**origin.recipe["training"], "device": "cpu"}
    cpu_only = origin.model_copy(update={"environment": environment, "recipe": {**origin.recipe, "training": training}})
    assert "same GPUs" not in describe_guarantee(cpu_only)


def test_show_draws_the_lineage_of_a_bento_without_a_registry(
    bento: Path, forked_bloomery: Callable[..., Any], tmp_path: Path
) -> None:
    printed = forked_bloomery(tmp_path / "home", "show", str(bento)).stdout
    for words in (
        "sklearn:digits",
        "contract digits",
        "weights",
        "seed",
        "lock",
        "pruned-int8: ",
        "chosen",
    ):
        assert words in printed, words
    text = " ".join(re.sub("[│├└─]", " ", printed).split())
    reason = "slower|larger|dominated|within|drop|recall|not shown"
    assert re.search(rf" int8: [^)]*\) ({reason})", text), text
