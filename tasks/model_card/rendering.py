"""A card as a page of HTML and as Markdown: the same sections, tables and pictures in both.

Names come from users' data, so every text is escaped for the page that it stands on. The page of HTML carries its
pictures, runs no script and asks no address.
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
_MOST_BYTES = 100_000  # of a picture
_MOST_WIDTH = 1_400  # pixels
_COLORS = 256
_COLORS_OF_A_DRAWING = 65_536  # at most


class Table(NamedTuple):
    """Cells are texts. Columns whose heading stands in `figures` are set to the right."""

    headings: tuple[str, ...]
    rows: Sequence[Sequence[str]]
    figures: frozenset[str] = frozenset()


class Picture(NamedTuple):
    """A PNG file beside the card."""

    name: str
    caption: str


class Section(NamedTuple):
    """A heading, and below it texts, points of a list, tables and pictures, in this order."""

    title: str
    texts: Sequence[str] = ()
    points: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()


class Card(NamedTuple):
    """What the two pages say. `facts` is the line below the title."""

    title: str
    facts: str
    sections: Sequence[Section]


_HTML = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="content-security-policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ card.title }}: model card</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #1c2430; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #dfe3e8; }
.facts { color: #56606e; margin-top: .25rem; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 15px; }
th, td { text-align: left; vertical-align: top; padding: .3rem 1.2rem .3rem 0; border-bottom: 1px solid #dfe3e8; }
th { color: #56606e; font-weight: 600; }
td { overflow-wrap: anywhere; min-width: 3rem; }
.figure { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
figure { margin: 1.5rem 0; } figcaption { color: #56606e; } img { max-width: 100%; height: auto; }
</style>
</head>
<body>
<h1>{{ card.title }}</h1>
<p class="facts">{{ card.facts }}</p>
{% for section in card.sections %}
<h2>{{ section.title }}</h2>
{% for text in section.texts %}
<p>{{ text }}</p>
{% endfor %}
{% if section.points %}
<ul>
{% for point in section.points %}
<li>{{ point }}</li>
{% endfor %}
</ul>
{% endif %}
{% for table in section.tables %}
<div class="wide"><table>
<thead><tr>
{% for name in table.headings %}
<th{% if name in table.figures %} class="figure"{% endif %}>{{ name }}</th>
{% endfor %}
</tr></thead>
<tbody>
{% for row in table.rows %}
<tr>
{% for cell in row %}
<td{% if table.headings[loop.index0] in table.figures %} class="figure"{% endif %}>{{ cell }}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table></div>
{% endfor %}
{% for picture in section.pictures %}
<figure><img src="{{ address(picture) }}" alt="{{ picture.caption }}"><figcaption>{{ picture.caption }}</figcaption>\
</figure>
{% endfor %}
{% endfor %}
</body>
</html>
"""
_MARKDOWN = """# {{ card.title | text }}

{{ card.facts | text }}
{% for section in card.sections %}

## {{ section.title | text }}
{% for text in section.texts %}

{{ text | text }}
{% endfor %}
{% if section.points %}

{% for point in section.points %}
- {{ point | text }}
{% endfor %}
{% endif %}
{% for table in section.tables %}

|{% for name in table.headings %} {{ name | text }} |{% endfor %}

|{% for name in table.headings %}{{ " ---: |" if name in table.figures else " --- |" }}{% endfor %}

{% for row in table.rows %}
|{% for cell in row %} {{ cell | text }} |{% endfor %}

{% endfor %}
{% endfor %}
{% for picture in section.pictures %}

![{{ picture.caption | text }}]({{ picture.name }})
{% endfor %}
{% endfor %}
"""


def render_card(card: Card, folder: Path) -> None:
    """Afterwards `folder`, which holds the card's pictures, has both pages."""

    def address(picture: Picture) -> str:
        return "data:image/png;base64," + base64.b64encode((folder / picture.name).read_bytes()).decode()

    html = _environment(autoescape=True).from_string(_HTML).render(card=card, address=address)
    (folder / HTML).write_text(html, encoding="utf-8")
    markdown = _environment(autoescape=False).from_string(_MARKDOWN).render(card=card)
    (folder / MARKDOWN).write_text(markdown, encoding="utf-8")


def _environment(*, autoescape: bool) -> Environment:
    from jinja2 import Environment, StrictUndefined

    made = Environment(autoescape=autoescape, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters["text"] = escape_markdown
    return made


def escape_markdown(text: str) -> str:
    """The text on one line, so that it is shown as it stands: no markup, no HTML, no cell of a table ends in it.

    As entities, since a backslash is not heeded everywhere.
    """
    told = re.sub(r"[&<>|`*_\[\]\\~$]", lambda found: f"&#{ord(found.group())};", " ".join(text.split()))
    # What would begin a heading, a list or a rule, and what would be linked without being marked as a link.
    told = re.sub(r"^([#+=-])", lambda found: f"&#{ord(found.group())};", told)
    told = re.sub(r"^(\d+)([.)])(?=\s|$)", lambda found: f"{found.group(1)}&#{ord(found.group(2))};", told)
    return re.sub(r"://|(?i:\bwww\.)", lambda found: found.group().replace(":", "&#58;").replace(".", "&#46;"), told)


def shrink_picture(source: Path, folder: Path, name: str, caption: str) -> list[Picture]:
    """Afterwards `folder` has the picture in fewer bytes: no wider than a page, in few colours. None if there is none.

    A picture that stays too large in few colours is made narrower until it is not.
    """
    from PIL import Image

    if not source.is_file():
        return []
    target = folder / name
    with Image.open(source) as opened:
        drawn = opened.convert("RGB")
    # Of a drawing not by median cut, which goes by areas and gives the small marks of the chosen and of the others one
    # colour. For a photograph the other way takes many seconds.
    is_drawing = drawn.getcolors(_COLORS_OF_A_DRAWING) is not None
    how = Image.Quantize.MAXCOVERAGE if is_drawing else Image.Quantize.MEDIANCUT
    width = min(drawn.width, _MOST_WIDTH)
    while True:
        shown = drawn if width == drawn.width else drawn.resize((width, max(drawn.height * width // drawn.width, 1)))
        shown.quantize(_COLORS, how).save(target, optimize=True)
        if target.stat().st_size <= _MOST_BYTES or width < 400:
            return [Picture(name, caption)]
        width = width * 4 // 5
