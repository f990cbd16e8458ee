"""Disks that a test puts somewhere, and takes away or makes read-only."""

from __future__ import annotations

import subprocess


def mount(*words: str) -> bool:
    """Whether the system's command of that name did it, which not every user may."""
    return subprocess.run(["mount", *words], capture_output=True).returncode == 0
