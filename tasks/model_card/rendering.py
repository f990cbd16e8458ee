"""Renders a model card as an HTML page and as Markdown, with the same sections, tables and pictures in both.

Names come from users' data, so every text is escaped for the page that shows it. The HTML page embeds its pictures,
runs no script and loads nothing.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from jinja2 import Environment

HTML, MARKDOWN = "card.html", "card.md"
_MAX_BYTES = 100_000  # of a picture
_MAX_WIDTH = 1_400  # pixels
_MIN_WIDTH = 400
_NUM_COLORS = 256
_MAX_DRAWING_COLORS = 65_536  # a picture with more colours is a photograph


class Table(NamedTuple):
    """A table of texts. Columns whose heading is in `numeric` are aligned to the right."""

    headings: tuple[str, ...]
    rows: Sequence[Sequence[str]]
    numeric: frozenset[str] = frozenset()


class Picture(NamedTuple):
    """A PNG file in the card's folder."""

    name: str
    caption: str


class Section(NamedTuple):
    """A heading, followed by paragraphs, list items, tables and pictures, in this order."""

    title: str
    texts: Sequence[str] = ()
    points: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()


class Card(NamedTuple):
    """The content of a card. `facts` is the line below the title."""

    title: str
    facts: str
    sections: Sequence[Section]


def render_card(card: Card, folder: Path) -> None:
    """Writes both pages into `folder`, which holds the card's pictures."""

    def data_uri(picture: Picture) -> str:
        return "data:image/png;base64," + base64.b64encode((folder / picture.name).read_bytes()).decode()

    html = _make_environment(autoescape=True).get_template("rendering.html.jinja").render(card=card, data_uri=data_uri)
    (folder / HTML).write_text(html, encoding="utf-8")
    markdown = _make_environment(autoescape=False).get_template("rendering.md.jinja").render(card=card)
    (folder / MARKDOWN).write_text(markdown, encoding="utf-8")


def _make_environment(*, autoescape: bool) -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["markdown"] = escape_markdown
    return environment


def escape_markdown(text: str) -> str:
    """Returns the text on one line, escaped so that Markdown renders it literally, also inside a table cell.

    Escapes are HTML entities, since not every renderer accepts backslashes.
    """
    escaped = re.sub(r"[&<>|`*_\[\]\\~$]", lambda match: f"&#{ord(match.group())};", " ".join(text.split()))
    # Characters that start a heading, a list or a rule, and addresses that would become links.
    escaped = re.sub(r"^([#+=-])", lambda match: f"&#{ord(match.group())};", escaped)
    escaped = re.sub(r"^(\d+)([.)])(?=\s|$)", lambda match: f"{match.group(1)}&#{ord(match.group(2))};", escaped)
    return re.sub(r"://|(?i:\bwww\.)", lambda match: match.group().replace(":", "&#58;").replace(".", "&#46;"), escaped)


def shrink_picture(source: Path, folder: Path, name: str, caption: str) -> list[Picture]:
    """Copies a picture into `folder` with at most 256 colours and `_MAX_BYTES`; returns [] if `source` is missing.

    A picture that is still too large is narrowed in steps, down to `_MIN_WIDTH`.
    """
    from PIL import Image

    if not source.is_file():
        return []
    target = folder / name
    with Image.open(source) as image:
        original = image.convert("RGB")
    # Median cut weighs colours by area, so the small marks of chosen and passed candidates would get one colour.
    # Maximum coverage keeps them apart, but takes many seconds for a photograph.
    is_drawing = original.getcolors(_MAX_DRAWING_COLORS) is not None
    method = Image.Quantize.MAXCOVERAGE if is_drawing else Image.Quantize.MEDIANCUT
    width = min(original.width, _MAX_WIDTH)
    while True:
        height = max(original.height * width // original.width, 1)
        resized = original if width == original.width else original.resize((width, height))
        resized.quantize(_NUM_COLORS, method).save(target, optimize=True)
        if target.stat().st_size <= _MAX_BYTES or width < _MIN_WIDTH:
            return [Picture(name, caption)]
        width = width * 4 // 5
