"""Bits that are written in about as many bits as they surprise, and read again."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from bloomery.models.onnx_storage.arithmetic_coder import (
    ArithmeticDecoder,
    ArithmeticEncoder,
    ContextModel,
    LogisticMixer,
)

CERTAIN = st.floats(0, 1)


@given(st.lists(st.tuples(CERTAIN, st.integers(0, 1)), max_size=300))
def test_bits_come_back_whatever_their_probabilities_were(given_bits):
    encoder = ArithmeticEncoder()
    for probability, bit in given_bits:
        assert encoder.bit(probability, bit) == bit
    decoder = ArithmeticDecoder(encoder.finish())
    assert [decoder.bit(probability) for probability, _ in given_bits] == [bit for _, bit in given_bits]


@given(st.lists(st.tuples(st.floats(0.01, 0.99), st.integers(0, 1)), min_size=1, max_size=300))
def test_the_length_is_what_the_bits_surprise(given_bits):
    encoder = ArithmeticEncoder()
    for probability, bit in given_bits:
        encoder.bit(probability, bit)
    surprise = sum(-math.log2(probability if bit else 1 - probability) for probability, bit in given_bits)
    assert len(encoder.finish()) <= surprise / 8 * 1.01 + 2


@given(st.binary(max_size=60), st.lists(CERTAIN, max_size=600))
def test_any_bytes_can_be_read(written, probabilities):
    decoder = ArithmeticDecoder(written)
    assert all(decoder.bit(probability) in (0, 1) for probability in probabilities)


def mixed(bits: list[int]) -> bytes:
    """Each bit by two contexts: one that sees every third place, and one that sees none."""
    encoder, mixer = ArithmeticEncoder(), LogisticMixer([0.5, 0.5], 400.0)
    places, one = [ContextModel() for _ in range(3)], ContextModel()
    for number, bit in enumerate(bits):
        mixer.bit(encoder, [places[number % 3], one], bit)
    return encoder.finish()


@given(st.lists(st.integers(0, 1), max_size=300))
def test_what_is_learnt_while_writing_is_learnt_while_reading(bits):
    decoder, mixer = ArithmeticDecoder(mixed(bits)), LogisticMixer([0.5, 0.5], 400.0)
    places, one = [ContextModel() for _ in range(3)], ContextModel()
    assert [mixer.bit(decoder, [places[n % 3], one], 0) for n in range(len(bits))] == bits


def test_a_pattern_that_a_context_sees_costs_next_to_nothing():
    assert len(mixed([0, 0, 1] * 400)) < 20


def test_the_bytes_are_those_of_every_machine():
    # A change here is a new version of the stored form.
    assert mixed([0, 0, 1, 1, 0, 1, 0, 0, 0, 1] * 12).hex() == "ab9f4f415cd410f589c528c460cf0e58"
