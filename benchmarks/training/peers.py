"""The Trainers of Lightning and of Hugging Face with their fastest known settings, for `loop.py`."""

from __future__ import annotations

import logging
import tempfile
import warnings
from typing import Any

import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, TensorDataset
from training_task import EpochTimes, TrainingLoop, TrainingTask


def lightning_loop() -> TrainingLoop:
    """Returns a loop that uses Lightning's `barebones` mode, which is made for benchmarks.

    Raises:
        ImportError: Lightning is not installed.
    """
    import lightning.pytorch as lightning

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(lightning.LightningModule):
        def __init__(self, task: TrainingTask, times: EpochTimes) -> None:
            super().__init__()
            self.network, self.task, self.times, self.loss = task.build_network(), task, times, task.build_loss()

        def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> torch.Tensor:
            x, y = batch
            return self.loss(self.network(x), y)

        def configure_optimizers(self) -> Any:
            optimizer = self.task.build_optimizer(self.network)
            schedule = {"scheduler": self.task.build_schedule(optimizer), "interval": "step"}
            return {"optimizer": optimizer, "lr_scheduler": schedule}

        def on_train_epoch_end(self) -> None:
            self.times.record()

    def train(task: TrainingTask, times: EpochTimes) -> None:
        rows = TensorDataset(task.rows.x, task.rows.y)
        # Rows are indexed a batch at a time, since single rows are several times slower.
        batches = BatchSampler(RandomSampler(rows), task.training.batch_size, drop_last=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = lightning.Trainer(
                max_epochs=task.training.epochs,
                accelerator="cpu",
                devices=1,
                barebones=True,
                gradient_clip_val=task.training.clip_norm,
            )
            trainer.fit(Module(task, times), DataLoader(rows, sampler=batches, batch_size=None))

    return train


def hugging_face_loop() -> TrainingLoop:
    """Returns a loop that uses the Trainer of Hugging Face's transformers.

    Raises:
        ImportError: transformers or accelerate is not installed.
    """
    import accelerate  # noqa: F401  the Trainer needs it, but reports that it is missing only when it runs
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    class Rows(Dataset):  # type: ignore[type-arg]
        """Returns a batch at a time: torch's DataLoader calls `__getitems__` where a data set has it."""

        def __init__(self, task: TrainingTask) -> None:
            self.x, self.y, _ = task.rows

        def __len__(self) -> int:
            return len(self.y)

        def __getitems__(self, rows: list[int]) -> dict[str, torch.Tensor]:
            indices = torch.tensor(rows)
            return {"x": self.x.index_select(0, indices), "labels": self.y.index_select(0, indices)}

        def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
            return {"x": self.x[row], "labels": self.y[row]}

    class NetworkWithLoss(nn.Module):
        def __init__(self, task: TrainingTask) -> None:
            super().__init__()
            self.network, self.loss = task.build_network(), task.build_loss()

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": self.loss(self.network(x), labels)}

    class EpochRecorder(TrainerCallback):
        def __init__(self, times: EpochTimes) -> None:
            self.times = times

        def on_epoch_end(self, *_: Any, **__: Any) -> None:
            self.times.record()

    def train(task: TrainingTask, times: EpochTimes) -> None:
        module = NetworkWithLoss(task)
        optimizer = task.build_optimizer(module)
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            arguments = TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=task.training.batch_size,
                num_train_epochs=task.training.epochs,
                max_grad_norm=task.training.clip_norm or 0.0,
                use_cpu=True,
                report_to="none",
                save_strategy="no",
                logging_strategy="no",
                logging_nan_inf_filter=False,
                disable_tqdm=True,
                dataloader_pin_memory=False,
                remove_unused_columns=False,
            )
            trainer = Trainer(
                model=module,
                args=arguments,
                train_dataset=Rows(task),
                data_collator=lambda batch: batch,  # type: ignore[arg-type, return-value]
                optimizers=(optimizer, task.build_schedule(optimizer)),  # type: ignore[arg-type]
                callbacks=[EpochRecorder(times)],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()

    return train
