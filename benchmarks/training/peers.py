"""The trainers of Lightning and of Hugging Face, set up as quick as is known, for the task of loop.py."""

from __future__ import annotations

import logging
import tempfile
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, TensorDataset

if TYPE_CHECKING:
    from loop import Task, Times, Way


def lightning_trainer() -> Way:
    """`barebones` is Lightning's own mode for measuring: no bar, no log, no checkpoint, no summary."""
    import lightning.pytorch as lightning

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(lightning.LightningModule):
        def __init__(self, task: Task, times: Times) -> None:
            super().__init__()
            self.network, self.task, self.times, self.loss = task.network(), task, times, task.loss()

        def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> torch.Tensor:
            x, y = batch
            return self.loss(self.network(x), y)

        def configure_optimizers(self) -> Any:
            optimizer = self.task.optimizer(self.network)
            schedule = {"scheduler": self.task.schedule(optimizer), "interval": "step"}
            return {"optimizer": optimizer, "lr_scheduler": schedule}

        def on_train_epoch_end(self) -> None:
            self.times.note()

    def train(task: Task, times: Times) -> None:
        rows = TensorDataset(task.rows.x, task.rows.y)
        # Indexed with a whole batch: one at a time is several times slower.
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


def huggingface_trainer() -> Way:
    import accelerate  # noqa: F401  the Trainer needs it, and says so only once it runs
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    class Rows(Dataset):  # type: ignore[type-arg]
        """Hands out whole batches, which torch's loader asks for if it may."""

        def __init__(self, task: Task) -> None:
            self.x, self.y, _ = task.rows

        def __len__(self) -> int:
            return len(self.y)

        def __getitems__(self, rows: list[int]) -> dict[str, torch.Tensor]:
            at = torch.tensor(rows)
            return {"x": self.x.index_select(0, at), "labels": self.y.index_select(0, at)}

        def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
            return {"x": self.x[row], "labels": self.y[row]}

    class WithLoss(nn.Module):
        def __init__(self, task: Task) -> None:
            super().__init__()
            self.network, self.loss = task.network(), task.loss()

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": self.loss(self.network(x), labels)}

    class Noting(TrainerCallback):
        def __init__(self, times: Times) -> None:
            self.times = times

        def on_epoch_end(self, *_: Any, **__: Any) -> None:
            self.times.note()

    def train(task: Task, times: Times) -> None:
        module = WithLoss(task)
        optimizer = task.optimizer(module)
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
                data_collator=lambda batch: batch,
                optimizers=(optimizer, task.schedule(optimizer)),
                callbacks=[Noting(times)],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()

    return train
