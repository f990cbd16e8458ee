"""Where BentoML's store keeps bentos."""

from __future__ import annotations

import os
from pathlib import Path


def bento_folder(tag: str) -> Path:
    """Where BentoML's store keeps the bento."""
    name, version = tag.split(":")
    return Path(os.environ["BENTOML_HOME"]) / "bentos" / name / version


def artifacts_folder(tag: str) -> Path:
    """The folder in the bento that holds the model and all that describes it."""
    return bento_folder(tag) / "src" / "artifacts"
