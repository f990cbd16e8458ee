"""The code that a version takes along: of its endpoint in a bento, and of its twin in MLflow's registry."""

from __future__ import annotations

import shutil
from pathlib import Path

from bloomery.tasks.orchestration.code_version import PACKAGE, reach, templates_of

SERVICE = "bloomery.deployments.service"
REGISTRY_MODEL = "bloomery.deployments.registry_model"
LOADER = "bloomery.deployments.mlflow_loader"
BUNDLED = (SERVICE, REGISTRY_MODEL, LOADER)


def copy_modules(folder: Path) -> None:
    """Copies the modules in `BUNDLED`, with all that they import and their templates, to `folder`.

    `bloomery` is a package there, without what an installed one offers, so that it comes before the installed one.
    """
    for dotted, source in reach(*BUNDLED).items():
        target = folder.joinpath(*dotted.split(".")).with_suffix(".py")
        if source.name == "__init__.py":
            target = folder.joinpath(*dotted.split("."), "__init__.py")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        for template in templates_of(source):
            shutil.copyfile(template, target.parent / template.name)
        (target.parent / "__init__.py").touch()
    (folder / PACKAGE / "__init__.py").touch()
