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
        for step_folder in sorted(self._folder.glob("step-*"), reverse=True):
            metadata = _read_intact(step_folder)
            if metadata is not None:
                _load_state(state, step_folder, metadata)
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
    temporary, step_folder = folder / f".{name}", folder / name
    if _rank() == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
    _barrier()
    try:
        _write_tensors(state, temporary)
        if _rank() == 0:
            _write_metadata(state, temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if _rank() == 0:
        shutil.rmtree(step_folder, ignore_errors=True)
        temporary.rename(step_folder)
        for previous in folder.iterdir():
            if previous.name not in (name, f".{name}"):
                shutil.rmtree(previous, ignore_errors=True)
    _barrier()


def _write_tensors(state: TrainingState, temporary: Path) -> None:
    tensors = _tensors(state)
    if not _is_sharded(state.network):
        weights = tensors.pop("network")
        if _rank() == 0:
            # Copies, because safetensors rejects tensors that share memory.
            weights_to_save = {
                name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in weights.items()
            }
            save_file(weights_to_save, temporary / WEIGHTS)
    with _silenced(), _original_failures():
        dcp.save(_per_process(tensors, state), checkpoint_id=temporary / _STATE, no_dist=not _is_distributed())


@contextmanager
def _original_failures() -> Iterator[None]:
    """Raises the original error of the first failed process instead of PyTorch's wrapper, which is no `Exception`, so
    that a full disk is reported as such."""
    try:
        yield
    except CheckpointException as wrapped:
        error = next(error for error, _ in wrapped.failures.values())
        raise error from wrapped


def _write_metadata(state: TrainingState, temporary: Path) -> None:
    files = sorted(path for path in temporary.rglob("*") if path.is_file())
    metadata = CheckpointMetadata(
        epoch=state.epoch,
        batch=state.batch,
        step=state.step,
        rate=state.rate,
        num_ema_steps=0 if state.ema is None else state.ema.num_steps,
        history=tuple(tuple(epoch) for epoch in state.history),
        has_best=bool(state.best),
        schedule=state.schedule.state_dict(),
        files={str(path.relative_to(temporary)): digest_of_file(path) for path in files},
    )
    with (temporary / _METADATA).open("w", encoding="utf-8") as stream:
        stream.write(metadata.model_dump_json())
        stream.flush()
        os.fsync(stream.fileno())


def _read_intact(step_folder: Path) -> CheckpointMetadata | None:
    """The metadata of a checkpoint if all its files are intact, else None."""
    try:
        metadata = CheckpointMetadata.model_validate_json((step_folder / _METADATA).read_text(encoding="utf-8"))
        if all(digest_of_file(step_folder / name) == sha256 for name, sha256 in metadata.files.items()):
            return metadata
    except (OSError, UnicodeDecodeError, ValidationError):
        pass
    return None


def _load_state(state: TrainingState, step_folder: Path, metadata: CheckpointMetadata) -> None:
    if metadata.has_best:
        state.best = {name: torch.empty_like(tensor) for name, tensor in state.network.state_dict().items()}
    tensors = _tensors(state)
    has_weights_file = WEIGHTS in metadata.files
    weights = tensors.pop("network") if has_weights_file else tensors["network"]
    with _silenced(), _original_failures():
        dcp.load(_per_process(tensors, state), checkpoint_id=step_folder / _STATE, no_dist=not _is_distributed())
    if has_weights_file:
        weights = load_file(step_folder / WEIGHTS)
    set_state_dict(state.network, state.optimizer, model_state_dict=weights, optim_state_dict=tensors["optimizer"])
    # The first process wrote these, and other processes may have other parameter groups.
    own_rates = {
        "base_lrs": state.schedule.base_lrs,
        "_last_lr": [group["lr"] for group in state.optimizer.param_groups],
    }
    state.schedule.load_state_dict(metadata.schedule | own_rates)
    state.epoch, state.batch, state.step, state.rate = metadata.epoch, metadata.batch, metadata.step, metadata.rate
    state.history = [EpochResult(int(number), *values) for number, *values in metadata.history]
    if state.ema is not None:
        state.ema.num_steps = metadata.num_ema_steps
    own_tensors = tensors[_process_key()]
    device = next(state.network.parameters()).device
    state.loss_sum, state.num_rows = own_tensors["loss_sum"].to(device), int(own_tensors["num_rows"])
    torch.set_rng_state(own_tensors["random"])
    if "random_of_device" in own_tensors:
        torch.cuda.set_rng_state(own_tensors["random_of_device"])


def _tensors(state: TrainingState) -> dict[str, Any]:
    """The tensors of the state by name, not copied, so that loading writes in place."""
    network, optimizer = get_state_dict(state.network, state.optimizer)
    own_tensors = {
        "random": torch.get_rng_state(),
        "loss_sum": state.loss_sum,
        "num_rows": torch.tensor(state.num_rows),
    }
    if torch.cuda.is_available():
        own_tensors["random_of_device"] = torch.cuda.get_rng_state()
    return {
        "network": network,
        "optimizer": optimizer,
        "ema": {} if state.ema is None else state.ema.tensors,
        "best": state.best,
        _process_key(): own_tensors,
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
