"""Arithmetic coding: bits decode to themselves and take as many bits as their information."""

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

PROBABILITY = st.floats(0, 1)


@given(st.lists(st.tuples(PROBABILITY, st.integers(0, 1)), max_size=300))
def test_bits_decode_with_any_probabilities(bits):
    encoder = ArithmeticEncoder()
    for probability, bit in bits:
        assert encoder.code_bit(probability, bit) == bit
    decoder = ArithmeticDecoder(encoder.finish())
    assert [decoder.code_bit(probability) for probability, _ in bits] == [bit for _, bit in bits]


@given(st.lists(st.tuples(st.floats(0.01, 0.99), st.integers(0, 1)), min_size=1, max_size=300))
def test_the_length_is_the_information_of_the_bits(bits):
    encoder = ArithmeticEncoder()
    for probability, bit in bits:
        encoder.code_bit(probability, bit)
    information = sum(-math.log2(probability if bit else 1 - probability) for probability, bit in bits)
    assert len(encoder.finish()) <= information / 8 * 1.01 + 2


@given(st.binary(max_size=60), st.lists(PROBABILITY, max_size=600))
def test_any_bytes_can_be_read(stored, probabilities):
    decoder = ArithmeticDecoder(stored)
    assert all(decoder.code_bit(probability) in (0, 1) for probability in probabilities)


def encode_mixed(bits: list[int]) -> bytes:
    """Codes each bit with two contexts: one for its position modulo 3, and one for all."""
    encoder, mixer = ArithmeticEncoder(), LogisticMixer([0.5, 0.5], 400.0)
    by_position, shared = [ContextModel() for _ in range(3)], ContextModel()
    for number, bit in enumerate(bits):
        mixer.code_bit(encoder, [by_position[number % 3], shared], bit)
    return encoder.finish()


@given(st.lists(st.integers(0, 1), max_size=300))
def test_decoder_and_encoder_learn_the_same(bits):
    decoder, mixer = ArithmeticDecoder(encode_mixed(bits)), LogisticMixer([0.5, 0.5], 400.0)
    by_position, shared = [ContextModel() for _ in range(3)], ContextModel()
    assert [mixer.code_bit(decoder, [by_position[number % 3], shared], 0) for number in range(len(bits))] == bits


def test_a_pattern_that_a_context_captures_takes_few_bytes():
    assert len(encode_mixed([0, 0, 1] * 400)) < 20


def test_the_bytes_are_the_same_on_every_machine():
    # A change here needs a new version of the format.
    assert encode_mixed([0, 0, 1, 1, 0, 1, 0, 0, 0, 1] * 12).hex() == "ab9f4f415cd410f589c528c460cf0e58"
