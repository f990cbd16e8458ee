"""What a checkpoint's model card says: its licence, and the first paragraph."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml

_CARD = "README.md"
_MAX_BYTES = 1_000_000
_MAX_EXCERPT = 500  # characters


class Card(NamedTuple):
    licence: str | None
    excerpt: str | None


def read_card(folder: Path) -> Card:
    """Returns what README.md in `folder` says; nothing if there is none or it cannot be read."""
    try:
        with (folder / _CARD).open(encoding="utf-8", errors="replace") as stream:
            text = stream.read(_MAX_BYTES)
    except OSError:
        return Card(None, None)
    match = re.match(r"---\s*\n(.*?\n)---\s*(?:\n|$)", text, re.DOTALL)
    head, body = (match.group(1), text[match.end() :]) if match else ("", text)
    return Card(_read_licence(head), _read_excerpt(body))


def _read_licence(head: str) -> str | None:
    try:
        document: Any = yaml.safe_load(head)
    except yaml.YAMLError:
        return None
    if not isinstance(document, dict):
        return None
    licence = document.get("license_name") or document.get("license")
    return ", ".join(map(str, licence)) if isinstance(licence, list) else str(licence) if licence else None


def _read_excerpt(body: str) -> str | None:
    """The first paragraph of text: no heading, list, table, code, picture or HTML; links become their text."""
    prose = re.sub(r"```.*?(?:```|\Z)", "", body, flags=re.DOTALL)
    for paragraph in re.split(r"\n\s*\n", prose):
        lines = [line.strip() for line in paragraph.splitlines() if not re.match(r"\s*#", line)]
        text = " ".join(lines).strip()
        if not text or re.match(r"[<|>+-]|!\[|\* |\d+\. ", text):
            continue
        text = re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", text)
        text = re.sub(r"[*`]|<[^>]*>", "", text)
        return text if len(text) <= _MAX_EXCERPT else f"{text[:_MAX_EXCERPT].rsplit(' ', 1)[0]} …"
    return None
