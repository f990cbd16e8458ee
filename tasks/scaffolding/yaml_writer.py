"""YAML with comments, written through ruamel.yaml and readable by every YAML 1.1 reader."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import CommentMark
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import RoundTripRepresenter
from ruamel.yaml.tokens import CommentToken

MAX_WIDTH = 118  # characters of a line
_UNQUOTED = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")


def as_sentence(clause: str) -> str:
    """Returns a clause with a capital letter and a full stop."""
    return f"{clause[0].upper()}{clause[1:]}."


class _Representer(RoundTripRepresenter):
    """Represents scalars so that YAML 1.1 reads the same values: ruamel.yaml alone writes YAML 1.2."""

    def represent_text(self, text: str) -> ScalarNode:
        is_unquoted = _UNQUOTED.fullmatch(text) is not None and yaml.safe_load(text) == text
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=None if is_unquoted else '"')

    def represent_real(self, number: float) -> ScalarNode:
        # YAML 1.1 reads a number with an exponent but no point as text.
        return self.represent_scalar("tag:yaml.org,2002:float", re.sub(r"^(-?\d+)e", r"\1.0e", repr(number)))

    def represent_null(self, _: None) -> ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:null", "null")


_Representer.add_representer(str, _Representer.represent_text)
_Representer.add_representer(float, _Representer.represent_real)
_Representer.add_representer(type(None), _Representer.represent_null)


def dump_yaml(document: CommentedMap) -> str:
    """Returns the document as text, with its comments."""
    writer = YAML()
    writer.Representer = _Representer
    writer.width = MAX_WIDTH
    writer.indent(mapping=2, sequence=4, offset=2)
    stream = io.StringIO()
    writer.dump(document, stream)
    return stream.getvalue()


def inline(value: Any) -> Any:
    """Returns the value in flow style: a mapping in braces or a list in brackets, on one line if it fits."""
    if isinstance(value, Mapping):
        mapping = CommentedMap((key, inline(item)) for key, item in value.items())
        mapping.fa.set_flow_style()
        return mapping
    if isinstance(value, Sequence) and not isinstance(value, str):
        sequence = CommentedSeq(inline(item) for item in value)
        sequence.fa.set_flow_style()
        return sequence
    return value


def add_comment(node: CommentedMap | CommentedSeq, key: str | int, text: str, indent: int = 0) -> None:
    """Adds comment lines in front of an entry of `node`, which starts in column `indent`."""
    lines = textwrap.wrap(printable(text), MAX_WIDTH - indent - 2, break_on_hyphens=False)
    node.yaml_set_comment_before_after_key(key, before="\n".join(lines), indent=indent)


def add_end_comment(node: CommentedMap, key: str, text: str) -> None:
    """Adds a comment behind an entry of `node`, on the same line."""
    node.yaml_add_eol_comment(printable(text), key)


def add_blank_line(node: CommentedMap, key: str) -> None:
    """Adds a blank line in front of an entry of `node`, and behind the comments that it has so far."""
    comments = node.ca.items.setdefault(key, [None, [], None, None])
    comments[1] = [*(comments[1] or []), CommentToken("\n", CommentMark(0))]


def printable(text: str) -> str:
    """Returns the text with escapes in place of characters that cannot be seen, line breaks among them."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)
