"""The eight stages as Kedro nodes, in a minimal project for `kedro run`.

    python by_kedro.py FOLDER    creates the project

Kedro keeps what a node returns in memory by default.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import steps

FILES = {
    "pyproject.toml": '[tool.kedro]\npackage_name = "by_kedro_project"\nproject_name = "digits"\n'
    'kedro_init_version = "{version}"\nsource_dir = "src"\n',
    "src/by_kedro_project/__init__.py": "",
    "src/by_kedro_project/settings.py": "",
    "src/by_kedro_project/pipeline_registry.py": "from by_kedro import register_pipelines\n",
    "conf/base/catalog.yml": "",
    "conf/local/credentials.yml": "",
}


def register_pipelines() -> dict[str, Any]:
    from kedro.pipeline import Pipeline, node

    previous_names = [None, *steps.NAMES]
    nodes = [
        node(getattr(steps, name), inputs=previous and f"{previous}_record", outputs=f"{name}_record", name=name)
        for previous, name in zip(previous_names, steps.NAMES, strict=False)
    ]
    return {"__default__": Pipeline(nodes)}


def create_project(folder: Path) -> None:
    from kedro import __version__

    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.format(version=__version__), encoding="utf-8")


if __name__ == "__main__":
    create_project(Path(sys.argv[1]))
