"""Arithmetic coding of single bits, with probabilities that are mixed from several context models.

Encoder and decoder run the same code: `coder.code_bit(probability, bit)` writes the bit, or reads and returns it. Both
must compute the same probabilities on every machine, so there are only sums, products and quotients of floats, which
IEEE 754 defines to the last bit, and tables from `decimal`, which rounds correctly.

Source: Witten, Neal & Cleary 1987, "Arithmetic Coding for Data Compression"; Mahoney 2005, "Adaptive Weighing of
Context Models for Lossless Data Compression" (logistic mixing).
"""

from __future__ import annotations

import decimal
import functools
from typing import Protocol

_STATE_BITS = 48
_STATE_MASK = (1 << _STATE_BITS) - 1
_TOP_SHIFT = _STATE_BITS - 8
_TOP = 1 << _TOP_SHIFT
_PROBABILITY_SCALE = 1 << 16  # probabilities have 16 bits where the interval is divided

_TABLE_SIZE = 4096
_MAX_LOGIT = 12.0  # where a probability is 6e-6 from certainty
_ENTRIES_PER_UNIT = _TABLE_SIZE / (2 * _MAX_LOGIT)
_LEARNING_RATE = 0.005


class BitCoder(Protocol):
    def code_bit(self, probability: float, bit: int) -> int:
        """Write `bit`, or ignore it and read one; returns the coded bit. `probability` is that of a 1."""
        ...


class ArithmeticEncoder:
    """Writes bits; `finish` returns the bytes."""

    def __init__(self) -> None:
        self.low, self.high = 0, _STATE_MASK
        self.content = bytearray()

    def code_bit(self, probability: float, bit: int) -> int:
        middle = _split_point(self.low, self.high, probability)
        if bit:
            self.high = middle
        else:
            self.low = middle + 1
        while self.low ^ self.high < _TOP:
            self.content.append(self.high >> _TOP_SHIFT)
            self.low = self.low << 8 & _STATE_MASK
            self.high = self.high << 8 & _STATE_MASK | 255
        return bit

    def finish(self) -> bytes:
        """The fewest bytes that lie in the interval when zeros follow them."""
        for shift in range(_TOP_SHIFT, -1, -8):
            value = -(-self.low >> shift) << shift
            if value <= self.high:
                tail = (value >> shift).to_bytes((_STATE_BITS - shift) // 8, "big")
                return bytes(self.content + tail).rstrip(b"\0")
        raise AssertionError("the interval is empty")


class ArithmeticDecoder:
    """Reads bits that an `ArithmeticEncoder` wrote. Zeros follow the end, so any bytes can be read."""

    def __init__(self, stored: bytes) -> None:
        self.low, self.high = 0, _STATE_MASK
        self.remaining = iter(stored)
        self.value = 0
        for _ in range(_STATE_BITS // 8):
            self.value = self.value << 8 | next(self.remaining, 0)

    def code_bit(self, probability: float, bit: int = 0) -> int:
        middle = _split_point(self.low, self.high, probability)
        if self.value <= middle:
            self.high, bit = middle, 1
        else:
            self.low, bit = middle + 1, 0
        while self.low ^ self.high < _TOP:
            self.low = self.low << 8 & _STATE_MASK
            self.high = self.high << 8 & _STATE_MASK | 255
            self.value = self.value << 8 & _STATE_MASK | next(self.remaining, 0)
        return bit


def _split_point(low: int, high: int, probability: float) -> int:
    share = min(max(int(probability * _PROBABILITY_SCALE), 1), _PROBABILITY_SCALE - 1)
    return low + ((high - low) * share >> 16)


class ContextModel:
    """The probability of a 1 in one context, which each bit changes by less and less."""

    __slots__ = ("num", "probability")

    def __init__(self, probability: float = 0.5, num: float = 0.5) -> None:
        self.probability, self.num = probability, num

    def update(self, bit: int, max_num: float) -> None:
        self.probability += (bit - self.probability) / (self.num + 1.0)
        if self.num < max_num:
            self.num += 1.0


class LogisticMixer:
    """Mixes the probabilities of several contexts by a logistic regression that learns from each bit."""

    def __init__(self, weights: list[float], max_num: float) -> None:
        self.weights, self.max_num = weights, max_num
        self.logits, self.sigmoids = _tables()

    def code_bit(self, coder: BitCoder, contexts: list[ContextModel], bit: int) -> int:
        """Code a bit and update the contexts and the weights with it."""
        weights, logits = self.weights, self.logits
        inputs = [logits[int(context.probability * _TABLE_SIZE)] for context in contexts]
        total = 0.0
        for weight, logit in zip(weights, inputs, strict=True):
            total += weight * logit
        position = int((total + _MAX_LOGIT) * _ENTRIES_PER_UNIT)
        probability = self.sigmoids[min(max(position, 0), _TABLE_SIZE - 1)]
        bit = coder.code_bit(probability, bit)
        step = (bit - probability) * _LEARNING_RATE
        for number, logit in enumerate(inputs):
            weights[number] += step * logit
        for context in contexts:
            context.update(bit, self.max_num)
        return bit


@functools.cache
def _tables() -> tuple[list[float], list[float]]:
    """ln(p / (1 - p)) for p from 0 to 1, and 1 / (1 + exp(-x)) for x from -12 to 12, at the middle of each step."""
    with decimal.localcontext(prec=20):
        half, steps, max_logit = decimal.Decimal("0.5"), decimal.Decimal(_TABLE_SIZE), decimal.Decimal(_MAX_LOGIT)
        shares = [(position + half) / steps for position in range(_TABLE_SIZE)]
        logits = [float((share / (1 - share)).ln()) for share in shares]
        sigmoids = [float(1 / (1 + (max_logit - 2 * max_logit * share).exp())) for share in shares]
    return [*logits, logits[-1]], sigmoids  # one more entry for a probability of 1
