"""How much of a GPU training uses: GPT-2 small in bf16, and ResNet-50.

    python benchmarks/training/gpu.py [--rows 16] [--images 128] [--steps 30] [--compile]
    python benchmarks/training/gpu.py --tiny     # the same code on a processor, with networks that fit one

GPT-2 small (124 M parameters, 1,024 tokens a row) learns the next token, with the loop's own optimizer and rate: its
tokens are on the device. Floating-point operations are counted by torch over one forward and backward pass, and are
set against what the device reaches in products of large bf16 matrices, measured in the same run. ResNet-50 reads images
of 224 x 224: once in steps on a batch that is on the device, and once in the whole of
`bloomery.models.training.loop.train` from the main memory, so that their difference is what the loop and the way
of the rows to the device cost.

Where there is no GPU it says so and ends.
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
    """tokens_BT -> logits_BTV of the token that comes after each."""

    def __init__(self, decoder: GptDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        return self.decoder.next_token_logits(tokens_BT)


def seconds_of_step(
    network: nn.Module, x: torch.Tensor, y: torch.Tensor, loss_of: Loss, steps: int, *, compiled: bool
) -> float:
    """Of a whole step in bf16, the mean over `steps`, after some that are not counted."""
    loop = Training(epochs=1, learning_rate=3e-4, precision="bf16", clip_norm=1.0)
    optimizer = build_optimizer(network, loop)
    schedule = build_schedule(optimizer, loop, steps + 10)

    def judged(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return loss_of(network(x), y)

    forward = torch.compile(judged) if compiled else judged

    def step() -> None:
        with torch.autocast(x.device.type, torch.bfloat16):
            loss = forward(x, y)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()

    for _ in range(5):
        step()
    _wait(x.device)
    start = time.perf_counter()
    for _ in range(steps):
        step()
    _wait(x.device)
    return (time.perf_counter() - start) / steps


def gpt(sizes: Sizes, rows: int, steps: int, device: torch.device, *, compiled: bool) -> None:
    layout = Layout(kind="tokens", shape=(sizes.length,), num_tokens=sizes.num_tokens)
    config = Gpt(kind="gpt", width=sizes.width, num_layers=sizes.num_layers, num_heads=sizes.num_heads, dropout=0.0)
    network = NextToken(GptDecoder(config, layout)).to(device)
    tokens = torch.randint(1, sizes.num_tokens, (rows, sizes.length), device=device)
    flops = count_flops_per_row(network, tokens[:1])
    seconds = seconds_of_step(network, tokens, tokens, next_token_loss, steps, compiled=compiled)
    rate = flops * rows / seconds
    print(f"| GPT of {num_parameters(network):,} parameters | {rows} rows of {sizes.length} tokens ", end="")
    print(f"| {rows * sizes.length / seconds:,.0f} tokens/s | {rate / 1e12:,.3f} |", _of_measured(rate, device), "|")


def resnet(sizes: Sizes, images: int, steps: int, device: torch.device, *, compiled: bool) -> None:
    layout = Layout(kind="image", shape=(3, sizes.pixels, sizes.pixels))
    config = ResNet(kind="resnet", depth=50, width=sizes.image_width, stem="large")
    network = build_network(Blueprint(config=config, layout=layout, num_outputs=1000))
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(images, *layout.shape, device=device).contiguous(memory_format=torch.channels_last)
    y = torch.randint(0, 1000, (images,), device=device)
    flops = count_flops_per_row(network, x[:2])
    seconds = seconds_of_step(network, x, y, nn.functional.cross_entropy, steps, compiled=compiled)
    of_loop = _seconds_of_loop(network, layout, images, steps, device, compiled=compiled)
    for name, one in (("steps on the device", seconds), ("the whole loop", of_loop)):
        rate = flops * images / one
        print(f"| ResNet-{sizes.depth}, {name} | {images} images of {sizes.pixels} x {sizes.pixels} ", end="")
        print(f"| {images / one:,.0f} images/s | {rate / 1e12:,.3f} |", _of_measured(rate, device), "|", flush=True)


def _seconds_of_loop(
    network: nn.Module, layout: Layout, images: int, steps: int, device: torch.device, *, compiled: bool
) -> float:
    """Of a step, from rows in the main memory; the first epoch of two is not counted."""
    per_epoch = max(min(steps, 16), 1)
    x, y = torch.randn(per_epoch * images, *layout.shape), torch.randint(0, 1000, (per_epoch * images,))
    part, two = Examples(x, y, np.arange(len(y))), Examples(x[:2], y[:2], np.arange(2))
    ends: list[float] = []
    loop = Training(epochs=3, batch_size=images, learning_rate=3e-4, precision="bf16", clip_norm=1.0, compile=compiled)
    hooks = TrainingHooks(on_epoch=lambda _: ends.append(time.perf_counter()))
    train(network, TrainingData(part, two), loop, placement=Placement(device), hooks=hooks)
    return (ends[-1] - ends[0]) / (2 * per_epoch)


def _of_measured(rate: float, device: torch.device) -> str:
    return f"{rate / peak_flops(device, torch.bfloat16):.1%}" if device.type == "cuda" else "not measured"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--rows", type=int, default=16, help="of tokens in a step")
    asked.add_argument("--images", type=int, default=128, help="in a step")
    asked.add_argument("--steps", type=int, default=30)
    asked.add_argument("--compile", action="store_true", help="torch.compile, of a network with its loss")
    asked.add_argument("--gpt-alone", action="store_true")
    asked.add_argument("--tiny", action="store_true", help="small networks, on a processor if there is no GPU")
    chosen = asked.parse_args()
    if not torch.cuda.is_available() and not chosen.tiny:
        print("There is no GPU here, so nothing is measured. `--tiny` runs the same code on the processor.")
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizes, rows, images, steps = FULL, chosen.rows, chosen.images, chosen.steps
    if chosen.tiny:
        sizes, rows, images, steps = TINY, 2, 4, 3
    if device.type == "cuda":
        measured = peak_flops(device, torch.bfloat16)
        print(f"{torch.cuda.get_device_name(device)}: {measured / 1e12:,.0f} TFLOP/s in bf16 products", end=", ")
    print(f"torch {torch.__version__}, {'compiled' if chosen.compile else 'not compiled'}\n")
    print("| network | a step | pace | TFLOP/s | of the measured matrix rate |\n| --- | --- | ---: | ---: | ---: |")
    gpt(sizes, rows, steps, device, compiled=chosen.compile)
    if chosen.gpt_alone:
        return
    resnet(sizes, images, steps, device, compiled=chosen.compile)


if __name__ == "__main__":
    main()
