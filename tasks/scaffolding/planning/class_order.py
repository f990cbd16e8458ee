"""Infers the order of classes from their names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from bloomery.tasks.scaffolding.planning.input_planning import split_words

# From the lowest to the highest; classes may be any two or more of a line.
_SCALES = (
    ("none", "minimal", "very low", "low", "moderate", "medium", "high", "very high", "critical", "extreme"),
    ("none", "mild", "moderate", "severe", "very severe"),
    ("very bad", "bad", "ok", "okay", "good", "very good", "great", "excellent"),
    ("very poor", "poor", "fair", "average", "good", "very good", "excellent", "outstanding"),
    ("xxs", "xs", "s", "m", "l", "xl", "xxl", "xxxl"),
    ("tiny", "small", "medium", "large", "huge"),
    ("never", "rarely", "seldom", "sometimes", "often", "usually", "always"),
    ("strongly disagree", "disagree", "neutral", "agree", "strongly agree"),
    ("very dissatisfied", "dissatisfied", "neutral", "satisfied", "very satisfied"),
    ("very unlikely", "unlikely", "neutral", "likely", "very likely"),
    ("beginner", "novice", "intermediate", "advanced", "expert"),
    ("minor", "major", "critical", "blocker"),
    ("low", "normal", "high", "urgent"),
    ("negative", "neutral", "positive"),
    ("bronze", "silver", "gold", "platinum"),
)
_SCALE_NAMES = {
    "rating",
    "ratings",
    "star",
    "stars",
    "grade",
    "grades",
    "level",
    "severity",
    "stage",
    "score",
    "quality",
}
_SCALE_NAMES |= {"satisfaction", "priority", "rank", "risk"}
_MAX_LEVELS = 11  # 0 to 10
_LEADING_NUMBER = re.compile(r"\D{0,6}?(\d+(?:\.\d+)?)")


def infer_order(classes: Iterable[Any]) -> tuple[str, ...] | None:
    """Returns texts from the lowest to the highest by a common scale, or by the number in each; None if there is none.

    Two classes have no order that matters.
    """
    names = [str(name) for name in classes]
    words = {" ".join(split_words(name)): name for name in names}
    if len(names) < 3 or len(words) < len(names):
        return None
    for scale in _SCALES:
        if set(words) <= set(scale):
            return tuple(words[level] for level in scale if level in words)
    numbers = [_LEADING_NUMBER.match(name) for name in names]
    values = [float(match[1]) for match in numbers if match is not None]
    has_one_wording = len({re.sub(r"[\d.]+", "", name).rstrip("s ") for name in names}) == 1
    if has_one_wording and len(values) == len(names) == len(set(values)) and len(names) <= _MAX_LEVELS:
        return tuple(name for _, name in sorted(zip(values, names, strict=True)))
    return None


def describe_order(name: str, classes: Sequence[Any]) -> str:
    """Returns a hint, as a clause, where the classes of a column look ordered; otherwise an empty text."""
    if all(isinstance(value, str) for value in classes):
        order = infer_order(classes)
        return "" if order is None else f"; --task ordinal if their order counts: {', '.join(order)}"
    numbers = {float(value) for value in classes}
    is_scale = 3 <= len(numbers) <= _MAX_LEVELS and max(numbers) - min(numbers) == len(numbers) - 1
    return "; --task ordinal if their order counts" if is_scale and _SCALE_NAMES & set(split_words(name)) else ""
