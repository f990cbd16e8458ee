"""Folders of bentos in BentoML's store."""

from __future__ import annotations

import os
from pathlib import Path


def bento_folder(tag: str) -> Path:
    """The folder of the bento in BentoML's store."""
    name, version = tag.split(":")
    return Path(os.environ["BENTOML_HOME"]) / "bentos" / name / version


def artifacts_folder(tag: str) -> Path:
    """The folder in the bento that holds the model and its metadata."""
    return bento_folder(tag) / "src" / "artifacts"
