"""The image that a container of the bento begins with."""

from __future__ import annotations

import platform

from bentoml.images import Image

STATE = "/var/lib/bloomery"  # which the service may write, if a volume is put there
_UV = "0.13.9"  # installs the packages


def image() -> Image:
    """The Python that packaged the bento, on a Debian with nothing else: no compiler and no git, as BentoML's has.

    All that the endpoint imports comes as wheels.
    """
    python = platform.python_version()
    major_minor = ".".join(platform.python_version_tuple()[:2])
    slim = Image(base_image=f"python:{python}-slim-bookworm", distro="", python_version=major_minor)
    slim.run(f"pip install --no-cache-dir uv=={_UV}")
    return slim.run(f"install --directory --owner=bentoml --group=bentoml {STATE}")
