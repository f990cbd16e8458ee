"""Measures the compressed forms of a pretrained network: bytes, latency, and accuracy in scope and on all rows.

    BLOOMERY_DATA=… python benchmarks/compression/pretrained.py [--recipe clinc150-minilm] [--seeds 0] [--only NAME …]

The network is trained as the recipe says (a finished training is reused), and the compress stage builds the default
candidates of its network, and files with 4-bit and fp16 weights. All files run in turns in one process, on one thread,
as they are served: 8-bit files get the rows one by one. The differences of accuracy are paired, in percentage points
with 95% intervals, over the official test rows.
"""

from __future__ import annotations

import argparse

import numpy as np
import pyarrow.parquet as pq
from goals import train_network

from bloomery.data_contracts.records.records import Candidate
from bloomery.flows.recipe.recipe import read_recipe
from bloomery.flows.stages import PLAIN_STAGES
from bloomery.models.compression.config import CandidateSpec, Compression
from bloomery.models.compression.default_candidates import default_candidates
from bloomery.models.evaluation.metrics import accuracy_drop
from bloomery.models.networks.blueprint import read_blueprint
from bloomery.models.networks.pretrained_config import Pretrained
from bloomery.tasks.infrastructure.engine_environment import apply_engine_environment
from bloomery.tasks.infrastructure.settings import require_state_folder, settings

_OUT_OF_SCOPE = "oos"
_FURTHER_CANDIDATES = (
    CandidateSpec(name="int4", weight_only="int4"),
    CandidateSpec(name="fp16", weight_only="fp16"),
)


def is_correct(candidate: Candidate) -> tuple[np.ndarray, np.ndarray]:
    """For each test row whether the prediction is right, and whether the row is in scope."""
    table = pq.read_table(settings().path(candidate.predictions_uri))
    truth, prediction = (np.array(table[name].to_pylist(), dtype=object) for name in ("truth", "prediction"))
    return truth == prediction, truth != _OUT_OF_SCOPE


def format_candidate(candidate: Candidate, baseline: Candidate) -> str:
    correct, is_in_scope = is_correct(candidate)
    expected, _ = is_correct(baseline)
    costs = [f"{candidate.size_bytes / 1e6:.2f} ({baseline.size_bytes / candidate.size_bytes:.1f}x)"]
    costs += [f"{latency.p50_ms:.2f} ({1 / latency.ratio.value:.1f}x)" for latency in candidate.latencies]
    accuracies = []
    for rows in (is_in_scope, np.ones_like(is_in_scope)):
        drop = accuracy_drop(expected[rows], correct[rows])
        interval = f"{-100 * drop.value:+.2f} ({-100 * drop.high:+.2f} to {-100 * drop.low:+.2f})"
        accuracies += [f"{correct[rows].mean():.4f}", interval]
    return f"| {candidate.name} | " + " | ".join((*costs, *accuracies)) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="clinc150-minilm")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="candidates beside fp32")
    options = parser.parse_args()
    apply_engine_environment()
    require_state_folder()
    for seed in options.seeds:
        trained = train_network(read_recipe(options.recipe), seed)
        model = read_blueprint(settings().path(trained.network_uri)).config
        assert isinstance(model, Pretrained)
        specs = (*default_candidates(model.kind, pretrained=model), *_FURTHER_CANDIDATES)
        if options.only is not None:
            specs = tuple(spec for spec in specs if spec.name in ("fp32", *options.only))
        measured = PLAIN_STAGES.compress(trained, Compression(candidates=specs)).candidates
        print(f"\n### `{options.recipe}`, seed {seed}\n")
        print("| candidate | MB | ms, 1 row | ms, 32 rows | in scope | difference | all rows | difference |")
        print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
        print("\n".join(format_candidate(candidate, measured[0]) for candidate in measured), flush=True)


if __name__ == "__main__":
    main()
