"""Lists that are written as texts: with a separator, as JSON, or as Python writes them."""

from __future__ import annotations

import ast
import json
from typing import Any


def split_text(text: str, separator: str | None) -> list[str] | None:
    """Returns the elements of a text, each once; None for a text in brackets that is neither JSON nor Python's list.

    Without a separator, a text that is no list is one element. Brackets around single elements belong to them:
    `[a];[b]` has two, and `[a]` is one.
    """
    stripped = text.strip()
    elements: list[Any] | None = None
    if stripped.startswith("[") and stripped.endswith("]"):
        elements = parse_list(stripped)
        if elements is None and _is_meant_as_list(stripped, separator or ","):
            return None
    if elements is None:
        elements = [stripped] if separator is None else stripped.split(separator)
    return list(dict.fromkeys(element for element in (str(item).strip() for item in elements) if element))


def split_sequence(text: str, separator: str | None) -> list[str]:
    """Returns all elements of a text in their places: those of a list in JSON or of Python, or what separators divide.

    A blank stands for any white space; elements between tabs or line breaks may have blanks.
    """
    elements = parse_list(text.strip()) if text.strip().startswith("[") else None
    if elements is None:
        elements = text.split(None if separator == " " else separator)
    return [element for element in (str(item).strip() for item in elements) if element]


def parse_list(text: str) -> list[Any] | None:
    """Returns the elements that are not null of a list in JSON or of Python; None for any other text."""
    for parse in (json.loads, ast.literal_eval):
        try:
            elements = parse(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(elements, list) and not any(isinstance(item, list | dict | tuple | set) for item in elements):
            return [item for item in elements if item is not None]
    return None


def _is_meant_as_list(text: str, separator: str) -> bool:
    """Whether one pair of brackets is around a value that is quoted or a number, or around several elements."""
    inside = text[1:-1].strip()
    depth = 0
    for sign in inside:
        depth += {"[": 1, "]": -1}.get(sign, 0)
        if depth < 0:  # the first bracket is closed
            return False
    return inside[:1] in tuple("\"'-0123456789") or any(sign in inside for sign in (separator, ",", "["))
