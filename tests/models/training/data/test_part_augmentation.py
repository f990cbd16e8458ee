"""Augmentation of the parts of mixed rows."""

from __future__ import annotations

import torch

from bloomery.data_contracts.records.tensor_layout import Layout, Part, mixed_layout
from bloomery.models.networks.architectures.fused import find_part_slices
from bloomery.models.networks.blueprint import Blueprint, build_network
from bloomery.models.networks.config import Fused
from bloomery.models.training.config import Augment
from bloomery.models.training.data.augmentation import augment_batch, augment_parts, batch_generator

PARTS = [
    Part(name="table", layout=Layout(kind="flat", shape=(2,))),
    Part(name="photo", layout=Layout(kind="image", shape=(1, 4, 4)), is_optional=True),
    Part(name="note", layout=Layout(kind="tokens", shape=(5,), num_tokens=9)),
]
LAYOUT = mixed_layout(PARTS)


def test_each_part_changes_as_it_does_alone():
    x = torch.rand(30, *LAYOUT.shape).mul(8).ceil()
    before = x.clone()
    augment = Augment(flip=True, shift=1, drop_tokens=0.3)
    changed = augment_parts(x, LAYOUT.part_slices, augment, batch_generator(0, 1, 2))
    random = batch_generator(0, 1, 2)
    photo = augment_batch(x[:, 2:18].reshape(-1, 1, 4, 4), augment, random)
    note = augment_batch(x[:, 19:], augment, random)
    assert torch.equal(x, before)
    assert torch.equal(changed[:, [0, 1, 18]], x[:, [0, 1, 18]])
    assert torch.equal(changed[:, 2:18], photo.flatten(1))
    assert torch.equal(changed[:, 19:], note)
    assert not torch.equal(changed[:, 2:18], x[:, 2:18])


def test_a_missing_part_stays_missing():
    x = torch.rand(30, *LAYOUT.shape)
    x[:, 2:19] = 0
    changed = augment_parts(x, LAYOUT.part_slices, Augment(flip=True, rotate=20, erase=0.9), batch_generator(0, 1, 2))
    assert not changed[:, 2:19].any()


def test_parts_are_found_in_a_wrapped_network():
    network = build_network(Blueprint(config=Fused(kind="fused", width=4), layout=LAYOUT, num_outputs=2))
    assert find_part_slices(torch.nn.Sequential(network)) == LAYOUT.part_slices
    assert find_part_slices(torch.nn.Linear(2, 2)) == ()
