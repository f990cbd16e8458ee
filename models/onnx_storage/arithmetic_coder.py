"""Arithmetic coding of single bits, each with a probability that several predictors are mixed into.

One walk over the bits serves both ways: `coder.bit(probability, bit)` writes the bit, or reads and gives it. Encoder
and decoder must come to the same probabilities on every machine, so there is nothing here but sums, products and
quotients of floats, which IEEE 754 fixes to the last bit, and tables from `decimal`, which rounds correctly.

Source: Witten, Neal & Cleary 1987, "Arithmetic Coding for Data Compression"; Mahoney 2005, "Adaptive Weighing of
Context Models for Lossless Data Compression" (logistic mixing).
"""

from __future__ import annotations

import decimal
import functools
from typing import Protocol

_STATE_BITS = 48
_ALL = (1 << _STATE_BITS) - 1
_TOP_SHIFT = _STATE_BITS - 8
_TOP = 1 << _TOP_SHIFT
_SCALE = 1 << 16  # probabilities are sixteen bits where intervals are cut

_STEPS = 4096  # of each table
_WIDEST = 12.0  # in the logistic domain, where probabilities are 6e-6 from certainty
_PER_UNIT = _STEPS / (2 * _WIDEST)
_LEARNING_RATE = 0.005


class BitCoder(Protocol):
    def bit(self, probability: float, bit: int) -> int:
        """Write `bit`, or read it and pay no heed to what was given; either way it is what comes back.

        `probability` is that of a 1.
        """
        ...


class ArithmeticEncoder:
    """Writes bits; `finish` gives the bytes."""

    def __init__(self) -> None:
        self.low, self.high = 0, _ALL
        self.written = bytearray()

    def bit(self, probability: float, bit: int) -> int:
        middle = _middle(self.low, self.high, probability)
        if bit:
            self.high = middle
        else:
            self.low = middle + 1
        while self.low ^ self.high < _TOP:
            self.written.append(self.high >> _TOP_SHIFT)
            self.low = self.low << 8 & _ALL
            self.high = self.high << 8 & _ALL | 255
        return bit

    def finish(self) -> bytes:
        """All that was written: the fewest bytes that, with zeros behind, lie in the interval."""
        for shift in range(_TOP_SHIFT, -1, -8):
            value = -(-self.low >> shift) << shift
            if value <= self.high:
                rest = (value >> shift).to_bytes((_STATE_BITS - shift) // 8, "big")
                return bytes(self.written + rest).rstrip(b"\0")
        raise AssertionError("the interval is empty")


class ArithmeticDecoder:
    """Reads bits that an `Encoder` wrote. Behind the end there are zeros, so any bytes can be read."""

    def __init__(self, written: bytes) -> None:
        self.low, self.high = 0, _ALL
        self.rest = iter(written)
        self.value = 0
        for _ in range(_STATE_BITS // 8):
            self.value = self.value << 8 | next(self.rest, 0)

    def bit(self, probability: float, bit: int = 0) -> int:
        middle = _middle(self.low, self.high, probability)
        if self.value <= middle:
            self.high, bit = middle, 1
        else:
            self.low, bit = middle + 1, 0
        while self.low ^ self.high < _TOP:
            self.low = self.low << 8 & _ALL
            self.high = self.high << 8 & _ALL | 255
            self.value = self.value << 8 & _ALL | next(self.rest, 0)
        return bit


def _middle(low: int, high: int, probability: float) -> int:
    share = min(max(int(probability * _SCALE), 1), _SCALE - 1)
    return low + ((high - low) * share >> 16)


class ContextModel:
    """How often a context was followed by a 1: a probability that each bit moves by less and less."""

    __slots__ = ("num", "probability")

    def __init__(self, probability: float = 0.5, num: float = 0.5) -> None:
        self.probability, self.num = probability, num

    def follow(self, bit: int, most: float) -> None:
        self.probability += (bit - self.probability) / (self.num + 1.0)
        if self.num < most:
            self.num += 1.0


class LogisticMixer:
    """The contexts' probabilities as one: a logistic regression that learns from each bit."""

    def __init__(self, weights: list[float], most: float) -> None:
        self.weights, self.most = weights, most
        self.stretched, self.squashed = _tables()

    def bit(self, coder: BitCoder, contexts: list[ContextModel], bit: int) -> int:
        """The bit that is coded; afterwards the contexts and the weights have learnt it."""
        weights, stretched = self.weights, self.stretched
        inputs = [stretched[int(context.probability * _STEPS)] for context in contexts]
        total = 0.0
        for weight, one in zip(weights, inputs, strict=True):
            total += weight * one
        place = int((total + _WIDEST) * _PER_UNIT)
        probability = self.squashed[min(max(place, 0), _STEPS - 1)]
        bit = coder.bit(probability, bit)
        step = (bit - probability) * _LEARNING_RATE
        for number, one in enumerate(inputs):
            weights[number] += step * one
        for context in contexts:
            context.follow(bit, self.most)
        return bit


@functools.cache
def _tables() -> tuple[list[float], list[float]]:
    """ln(p / (1 - p)) for p from 0 to 1, and 1 / (1 + exp(-x)) for x from -12 to 12, in the middle of each step."""
    with decimal.localcontext(prec=20):
        half, steps, widest = decimal.Decimal("0.5"), decimal.Decimal(_STEPS), decimal.Decimal(_WIDEST)
        shares = [(place + half) / steps for place in range(_STEPS)]
        stretched = [float((share / (1 - share)).ln()) for share in shares]
        squashed = [float(1 / (1 + (widest - 2 * widest * share).exp())) for share in shares]
    return [*stretched, stretched[-1]], squashed  # a probability of 1 falls behind the last step
