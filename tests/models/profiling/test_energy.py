"""Energy measurement with counters that are simulated by files, since few machines have readable ones."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from bloomery.data_contracts.errors import EngineMissing
from bloomery.models.profiling.energy import compare_energy
from bloomery.models.profiling.latency import ComparedFiles
from bloomery.models.profiling.rapl import EnergyCounter, open_energy_counter

MAX_RANGE_UJ = 1_000_000


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two packages, a zone within one of them, and the counter of the whole board."""
    for name, zone in {"0": "package-0", "0:0": "core", "1": "package-1", "2": "psys"}.items():
        folder = tmp_path / f"intel-rapl:{name}"
        folder.mkdir()
        (folder / "name").write_text(f"{zone}\n")
        (folder / "max_energy_range_uj").write_text(f"{MAX_RANGE_UJ}\n")
    write_energies(tmp_path, 900_000, 100, 0, 0)
    return tmp_path


def write_energies(root: Path, *energies_uj: int) -> None:
    for name, energy_uj in zip(("0", "1", "0:0", "2"), energies_uj, strict=True):
        (root / f"intel-rapl:{name}" / "energy_uj").write_text(f"{energy_uj}\n")


def test_packages_are_summed_also_after_a_wraparound(root: Path):
    counter = open_energy_counter(root, wait=lambda seconds: write_energies(root, 950_000, 100, 0, 0))
    before = counter.read()
    write_energies(root, 50_000, 300_100, 7, 7)
    assert counter.read() - before == pytest.approx(0.1 + 0.3)
    assert counter.read() == counter.read()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: None, "does not advance"),
        (
            lambda root: [(zone / "name").write_text("core") for zone in root.iterdir()],
            "no processor package has a counter",
        ),
        (lambda root: (root / "intel-rapl:1" / "energy_uj").unlink(), "cannot be read"),
        (lambda root: (root / "intel-rapl:0" / "energy_uj").write_text(""), "cannot be read"),
    ],
)
def test_a_machine_without_a_usable_counter_is_refused(change, message, root: Path):
    change(root)
    with pytest.raises(EngineMissing, match=f"energy cannot be measured: .*{message}") as caught:
        open_energy_counter(root, wait=lambda seconds: None)
    assert "weigh latency instead of energy in budget.objective" in caught.value.remedy


def test_a_machine_without_the_folder_is_refused(tmp_path: Path):
    with pytest.raises(EngineMissing, match="no processor package has a counter"):
        open_energy_counter(tmp_path / "powercap")


def test_joules_of_a_batch_are_compared_with_the_baseline(exported, quantized, splits, monkeypatch):
    """A simulated processor that takes one joule per row, and two if rows run one by one."""
    total_j = 0.0

    def run_batch(runtime, x, is_row_by_row):
        nonlocal total_j
        total_j += len(x) * (2.0 if is_row_by_row else 1.0)

    monkeypatch.setattr("bloomery.models.profiling.energy.run_batch", run_batch)
    paths = {"fp32": exported, "int8": quantized, "again": exported}
    files, x = ComparedFiles(paths, baseline="fp32", row_by_row={"int8"}), splits.test.x[:3].numpy()
    energies = compare_energy(files, x, lambda: total_j, rounds=5, turn_s=1e-4)
    assert {name: (energy.batch_size, energy.num_rounds, energy.p50_j) for name, energy in energies.items()} == {
        "fp32": (3, 5, 3.0),
        "int8": (3, 5, 6.0),
        "again": (3, 5, 3.0),
    }
    assert [(energy.ratio.low, energy.ratio.value, energy.ratio.high) for energy in energies.values()] == [
        (1,) * 3,
        (2,) * 3,
        (1,) * 3,
    ]


def test_a_counter_that_stops_is_detected(exported, splits):
    files, x = ComparedFiles({"fp32": exported}, baseline="fp32"), splits.test.x[:1].numpy()
    rising = itertools.count()
    energies = compare_energy(files, x, lambda: float(next(rising)), rounds=2, turn_s=1e-4)
    assert 0 < energies["fp32"].p50_j <= 1
    with pytest.raises(EngineMissing, match="does not advance"):
        compare_energy(files, x, lambda: 7.0, rounds=2, turn_s=1e-4)


def test_a_counter_starts_at_zero(root: Path):
    zones = [root / "intel-rapl:0"]
    assert EnergyCounter(zones).read() == 0
    assert np.isfinite(EnergyCounter(zones).read())
