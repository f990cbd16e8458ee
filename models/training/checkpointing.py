"""Checkpoints of the complete training state, from which a killed run resumes and ends with the same bits.

A checkpoint is a folder: `weights.safetensors`, unless the weights are sharded; `state/`, the other tensors in the
format of `torch.distributed.checkpoint`, written by every process; and `position.json`. It is written to a temporary
folder and renamed; then the previous checkpoint is deleted.
"""

from __future__ import annotations

import os
import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.tensor import DTensor

from bloomery.data_contracts.documents.digests import digest_of_file
from bloomery.data_contracts.documents.documents import Document
from bloomery.models.training.config import Checkpoints
from bloomery.models.training.loop import EpochResult, TrainingState
from bloomery.models.training.process_group import has_remote_modules

WEIGHTS = "weights.safetensors"
_STATE = "state"
_METADATA = "position.json"
_SYNC_STEPS = 10  # interval in steps at which several processes agree whether to save


class CheckpointMetadata(Document):
    """The non-tensor state, and the sha256 of every other file of the checkpoint."""

    epoch: int
    batch: int
    step: int
    rate: float
    num_ema_steps: int
    history: tuple[tuple[float, ...], ...]
    has_best: bool
    schedule: dict[str, Any]
    files: dict[str, str]


class Checkpointer:
    """Saves and loads the state of one training in `folder`. Each process has its own for the same folder."""

    def __init__(self, folder: Path, checkpoints: Checkpoints) -> None:
        self._folder = folder
        self._checkpoints = checkpoints
        self._saved_at = time.monotonic()
        self._saved_step = 0
        self._has_folder = False

    def load(self, state: TrainingState) -> None:
        """Loads the newest intact checkpoint into `state`, if there is one."""
        for place in sorted(self._folder.glob("step-*"), reverse=True):
            position = _read_intact(place)
            if position is not None:
                _load_state(state, place, position)
                self._saved_step, self._has_folder = state.step, True
                return

    def save(self, state: TrainingState) -> None:
        """Saves the state, if the interval of `Checkpoints` has passed."""
        if state.step != self._saved_step and self._is_time(state.step):
            if not self._has_folder:
                # Only once: if the folder disappears later, its disk is gone, and a new folder would be on another one.
                self._folder.mkdir(parents=True, exist_ok=True)
                self._has_folder = True
            _write_checkpoint(state, self._folder)
            self._saved_at, self._saved_step = time.monotonic(), state.step

    def delete(self) -> None:
        """Deletes all checkpoints."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _is_time(self, step: int) -> bool:
        every_steps = self._checkpoints.every_steps
        if every_steps is not None and step % every_steps == 0:
            return True
        is_late = time.monotonic() - self._saved_at >= self._checkpoints.every_minutes * 60
        if not _is_distributed():
            return is_late
        # Clocks differ, but all processes must save the same step.
        if step % _SYNC_STEPS:
            return False
        verdict = [is_late]
        dist.broadcast_object_list(verdict, src=0)
        return verdict[0]


def _write_checkpoint(state: TrainingState, folder: Path) -> None:
    """Replaces the checkpoint in `folder`; if writing fails, the previous one remains."""
    name = f"step-{state.step:012}"
    beside, place = folder / f".{name}", folder / name
    if _rank() == 0:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
    _barrier()
    try:
        _write_tensors(state, beside)
        if _rank() == 0:
            _write_metadata(state, beside)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    if _rank() == 0:
        shutil.rmtree(place, ignore_errors=True)
        beside.rename(place)
        for older in folder.iterdir():
            if older.name not in (name, f".{name}"):
                shutil.rmtree(older, ignore_errors=True)
    _barrier()


def _write_tensors(state: TrainingState, beside: Path) -> None:
    tensors = _tensors(state)
    if not _is_sharded(state.network):
        weights = tensors.pop("network")
        if _rank() == 0:
            # Copies, because safetensors rejects tensors that share memory.
            whole = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in weights.items()}
            save_file(whole, beside / WEIGHTS)
    with _silenced(), _original_failures():
        dcp.save(_per_process(tensors, state), checkpoint_id=beside / _STATE, no_dist=not _is_distributed())


@contextmanager
def _original_failures() -> Iterator[None]:
    """Raises the original error of the first failed process instead of PyTorch's wrapper, which is no `Exception`, so
    that a full disk is reported as such."""
    try:
        yield
    except CheckpointException as wrapped:
        failure = next(failure for failure, _ in wrapped.failures.values())
        raise failure from wrapped


def _write_metadata(state: TrainingState, beside: Path) -> None:
    files = sorted(path for path in beside.rglob("*") if path.is_file())
    position = CheckpointMetadata(
        epoch=state.epoch,
        batch=state.batch,
        step=state.step,
        rate=state.rate,
        num_ema_steps=0 if state.ema is None else state.ema.num_steps,
        history=tuple(tuple(epoch) for epoch in state.history),
        has_best=bool(state.best),
        schedule=state.schedule.state_dict(),
        files={str(path.relative_to(beside)): digest_of_file(path) for path in files},
    )
    with (beside / _METADATA).open("w", encoding="utf-8") as stream:
        stream.write(position.model_dump_json())
        stream.flush()
        os.fsync(stream.fileno())


def _read_intact(place: Path) -> CheckpointMetadata | None:
    """The metadata of a checkpoint whose files are all intact, or None."""
    try:
        position = CheckpointMetadata.model_validate_json((place / _METADATA).read_text(encoding="utf-8"))
        if all(digest_of_file(place / name) == sha256 for name, sha256 in position.files.items()):
            return position
    except (OSError, UnicodeDecodeError, ValidationError):
        pass
    return None


def _load_state(state: TrainingState, place: Path, position: CheckpointMetadata) -> None:
    if position.has_best:
        state.best = {name: torch.empty_like(tensor) for name, tensor in state.network.state_dict().items()}
    tensors = _tensors(state)
    is_whole = WEIGHTS in position.files
    weights = tensors.pop("network") if is_whole else tensors["network"]
    with _silenced(), _original_failures():
        dcp.load(_per_process(tensors, state), checkpoint_id=place / _STATE, no_dist=not _is_distributed())
    if is_whole:
        weights = load_file(place / WEIGHTS)
    set_state_dict(state.network, state.optimizer, model_state_dict=weights, optim_state_dict=tensors["optimizer"])
    # The first process wrote these, and other processes may have other parameter groups.
    own_rates = {
        "base_lrs": state.schedule.base_lrs,
        "_last_lr": [group["lr"] for group in state.optimizer.param_groups],
    }
    state.schedule.load_state_dict(position.schedule | own_rates)
    state.epoch, state.batch, state.step, state.rate = position.epoch, position.batch, position.step, position.rate
    state.history = [EpochResult(int(number), *figures) for number, *figures in position.history]
    if state.ema is not None:
        state.ema.num_steps = position.num_ema_steps
    own = tensors[_process_key()]
    device = next(state.network.parameters()).device
    state.loss_sum, state.num_rows = own["loss_sum"].to(device), int(own["num_rows"])
    torch.set_rng_state(own["random"])
    if "random_of_device" in own:
        torch.cuda.set_rng_state(own["random_of_device"])


def _tensors(state: TrainingState) -> dict[str, Any]:
    """The tensors of the state by name, not copied, so that loading writes in place."""
    network, optimizer = get_state_dict(state.network, state.optimizer)
    own = {
        "random": torch.get_rng_state(),
        "loss_sum": state.loss_sum,
        "num_rows": torch.tensor(state.num_rows),
    }
    if torch.cuda.is_available():
        own["random_of_device"] = torch.cuda.get_rng_state()
    return {
        "network": network,
        "optimizer": optimizer,
        "ema": {} if state.ema is None else state.ema.tensors,
        "best": state.best,
        _process_key(): own,
    }


def _process_key() -> str:
    """The key of tensors that differ between processes."""
    return f"process-{_rank()}"


def _per_process(tensors: dict[str, Any], state: TrainingState) -> dict[str, Any]:
    """The tensors under a key of this process, if processes have different parameters."""
    return {_process_key(): tensors} if has_remote_modules(state.network) else tensors


def _is_sharded(network: nn.Module) -> bool:
    return has_remote_modules(network) or any(isinstance(tensor, DTensor) for tensor in network.state_dict().values())


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _rank() -> int:
    return dist.get_rank() if _is_distributed() else 0


def _barrier() -> None:
    if _is_distributed():
        dist.barrier()


@contextmanager
def _silenced() -> Iterator[None]:
    with warnings.catch_warnings():
        # It only reports that there is a single process.
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield
