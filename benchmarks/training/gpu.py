"""Measures how much of a GPU's matrix throughput training uses: GPT-2 small in bf16, and ResNet-50.

    python benchmarks/training/gpu.py [--rows 16] [--images 128] [--steps 30] [--compile]
    python benchmarks/training/gpu.py --tiny     # the same code with small networks, also without a GPU

GPT-2 small (124 M parameters, 1,024 tokens per row) learns to predict the next token, with the optimizer and schedule
of the training loop; its tokens are on the device. torch counts the floating-point operations of one forward and
backward pass. The table compares them with the rate of large bf16 matrix products on the same device in the same run.

ResNet-50 reads images of 224 x 224. It is measured twice: in bare steps on a batch on the device, and in
`bloomery.models.training.loop.train` with rows in main memory. The difference is the overhead of the loop, and of
copying rows to the device.

Without a GPU and without `--tiny` the script prints that nothing is measured.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.networks.architectures.gpt import GptDecoder, next_token_loss
from bloomery.models.networks.blueprint import Blueprint, build_network, num_parameters
from bloomery.models.networks.config import Gpt, ResNet
from bloomery.models.profiling.flops import count_flops_per_row, peak_flops
from bloomery.models.training.config import Training
from bloomery.models.training.data.batches import Examples, TrainingData
from bloomery.models.training.loop import Placement, TrainingHooks, train
from bloomery.models.training.optimization.optimizer import build_optimizer, build_schedule

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Sizes(NamedTuple):
    width: int
    num_layers: int
    num_heads: int
    length: int
    num_tokens: int
    pixels: int
    depth: int
    image_width: int


FULL = Sizes(768, 12, 12, 1024, 50_257, 224, 50, 64)
TINY = Sizes(64, 2, 4, 64, 500, 32, 50, 8)


class NextToken(nn.Module):
    """Maps tokens_BT to logits_BTV of the next token at each position."""

    def __init__(self, decoder: GptDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        return self.decoder.next_token_logits(tokens_BT)


def measure_step_seconds(
    network: nn.Module, x: torch.Tensor, y: torch.Tensor, compute_loss: Loss, steps: int, *, compiled: bool
) -> float:
    """Returns the mean duration of a complete step in bf16 over `steps` steps, after warm-up steps."""
    loop = Training(epochs=1, learning_rate=3e-4, precision="bf16", clip_norm=1.0)
    optimizer = build_optimizer(network, loop)
    schedule = build_schedule(optimizer, loop, steps + 10)

    def forward_with_loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return compute_loss(network(x), y)

    forward = torch.compile(forward_with_loss) if compiled else forward_with_loss

    def run_step() -> None:
        with torch.autocast(x.device.type, torch.bfloat16):
            loss = forward(x, y)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()

    for _ in range(5):
        run_step()
    _synchronize(x.device)
    start = time.perf_counter()
    for _ in range(steps):
        run_step()
    _synchronize(x.device)
    return (time.perf_counter() - start) / steps


def measure_gpt(sizes: Sizes, rows: int, steps: int, device: torch.device, *, compiled: bool) -> None:
    layout = Layout(kind="tokens", shape=(sizes.length,), num_tokens=sizes.num_tokens)
    config = Gpt(kind="gpt", width=sizes.width, num_layers=sizes.num_layers, num_heads=sizes.num_heads, dropout=0.0)
    network = NextToken(GptDecoder(config, layout)).to(device)
    tokens = torch.randint(1, sizes.num_tokens, (rows, sizes.length), device=device)
    flops = count_flops_per_row(network, tokens[:1])
    seconds = measure_step_seconds(network, tokens, tokens, next_token_loss, steps, compiled=compiled)
    rate = flops * rows / seconds
    print(f"| GPT of {num_parameters(network):,} parameters | {rows} rows of {sizes.length} tokens ", end="")
    print(
        f"| {rows * sizes.length / seconds:,.0f} tokens/s | {rate / 1e12:,.3f} |",
        _format_utilization(rate, device),
        "|",
    )


def measure_resnet(sizes: Sizes, images: int, steps: int, device: torch.device, *, compiled: bool) -> None:
    layout = Layout(kind="image", shape=(3, sizes.pixels, sizes.pixels))
    config = ResNet(kind="resnet", depth=50, width=sizes.image_width, stem="large")
    network = build_network(Blueprint(config=config, layout=layout, num_outputs=1000))
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(images, *layout.shape, device=device).contiguous(memory_format=torch.channels_last)
    y = torch.randint(0, 1000, (images,), device=device)
    flops = count_flops_per_row(network, x[:2])
    seconds = measure_step_seconds(network, x, y, nn.functional.cross_entropy, steps, compiled=compiled)
    loop_seconds = _measure_loop_step_seconds(network, layout, images, steps, device, compiled=compiled)
    for name, step_seconds in (("bare steps on the device", seconds), ("training loop", loop_seconds)):
        rate = flops * images / step_seconds
        print(f"| ResNet-{sizes.depth}, {name} | {images} images of {sizes.pixels} x {sizes.pixels} ", end="")
        print(
            f"| {images / step_seconds:,.0f} images/s | {rate / 1e12:,.3f} |",
            _format_utilization(rate, device),
            "|",
            flush=True,
        )


def _measure_loop_step_seconds(
    network: nn.Module, layout: Layout, images: int, steps: int, device: torch.device, *, compiled: bool
) -> float:
    """Returns the mean duration of a step with rows in main memory. The first of three epochs is not counted."""
    steps_per_epoch = max(min(steps, 16), 1)
    x, y = torch.randn(steps_per_epoch * images, *layout.shape), torch.randint(0, 1000, (steps_per_epoch * images,))
    train_rows, val_rows = Examples(x, y, np.arange(len(y))), Examples(x[:2], y[:2], np.arange(2))
    epoch_ends: list[float] = []
    loop = Training(epochs=3, batch_size=images, learning_rate=3e-4, precision="bf16", clip_norm=1.0, compile=compiled)
    hooks = TrainingHooks(on_epoch=lambda _: epoch_ends.append(time.perf_counter()))
    train(network, TrainingData(train_rows, val_rows), loop, placement=Placement(device), hooks=hooks)
    return (epoch_ends[-1] - epoch_ends[0]) / (2 * steps_per_epoch)


def _format_utilization(rate: float, device: torch.device) -> str:
    return f"{rate / peak_flops(device, torch.bfloat16):.1%}" if device.type == "cuda" else "not measured"


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16, help="rows of tokens in a step")
    parser.add_argument("--images", type=int, default=128, help="images in a step")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--compile", action="store_true", help="compile network and loss with torch.compile")
    parser.add_argument("--gpt-alone", action="store_true", help="measure only GPT-2 small")
    parser.add_argument("--tiny", action="store_true", help="use small networks, on the processor if there is no GPU")
    options = parser.parse_args()
    if not torch.cuda.is_available() and not options.tiny:
        print("This machine has no GPU, so nothing is measured. `--tiny` runs the same code on the processor.")
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizes, rows, images, steps = FULL, options.rows, options.images, options.steps
    if options.tiny:
        sizes, rows, images, steps = TINY, 2, 4, 3
    if device.type == "cuda":
        peak = peak_flops(device, torch.bfloat16)
        print(f"{torch.cuda.get_device_name(device)}: {peak / 1e12:,.0f} TFLOP/s in bf16 products", end=", ")
    print(f"torch {torch.__version__}, {'compiled' if options.compile else 'not compiled'}\n")
    print("| network | step | throughput | TFLOP/s | of the measured matrix rate |\n| --- | --- | ---: | ---: | ---: |")
    measure_gpt(sizes, rows, steps, device, compiled=options.compile)
    if options.gpt_alone:
        return
    measure_resnet(sizes, images, steps, device, compiled=options.compile)


if __name__ == "__main__":
    main()
