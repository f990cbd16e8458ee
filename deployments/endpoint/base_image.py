"""The base image of a container that serves a bento."""

from __future__ import annotations

import platform

from bentoml.images import Image

STATE_FOLDER = "/var/lib/bloomery"  # writable for the service; mount a volume here to keep it
_UV_VERSION = "0.13.9"  # installs the packages


def container_image() -> Image:
    """The Python version that packages the bento, on slim Debian without BentoML's compiler and git.

    Every package that the endpoint imports is installed from a wheel, so none is compiled.
    """
    python = platform.python_version()
    major_minor = ".".join(platform.python_version_tuple()[:2])
    image = Image(base_image=f"python:{python}-slim-bookworm", distro="", python_version=major_minor)
    image.run(f"pip install --no-cache-dir uv=={_UV_VERSION}")
    return image.run(f"install --directory --owner=bentoml --group=bentoml {STATE_FOLDER}")
