"""The pages in docs/ agree with the code base."""

import ast
import re
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("data_contracts", "models", "tasks", "flows", "deployments")
PAGES = sorted([*ROOT.glob("docs/**/*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def folders() -> list[Path]:
    """Returns every folder of the rooms, in the order of a tree."""
    return [
        folder
        for room in ROOMS
        for folder in sorted([ROOT / room, *(ROOT / room).rglob("*/")])
        if folder.is_dir() and "__pycache__" not in folder.parts and any(folder.iterdir())
    ]


def test_the_tree_has_every_folder_with_the_first_line_of_its_docstring() -> None:
    lines = [line.strip() for line in ARCHITECTURE.splitlines()]
    missing = []
    for folder in folders():
        start = f"{folder.relative_to(ROOT)}/" if folder.parent == ROOT else f"{folder.name}/"
        module = folder / "__init__.py"
        docstring = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) if module.is_file() else None
        first = docstring.splitlines()[0].rstrip(".") if docstring else ""
        if not any(re.fullmatch(rf"{re.escape(start)}\s+{re.escape(first) or '.+'}", line) for line in lines):
            missing.append(f"{folder.relative_to(ROOT)}/  {first}")
    assert not missing, "docs/architecture.md lacks:\n" + "\n".join(missing)


def test_the_architecture_page_quotes_the_order_of_the_stages() -> None:
    source = (ROOT / "flows" / "order.py").read_text(encoding="utf-8")
    body = source[source.index("def run_stages") :].split("\n", 1)[1]
    assert textwrap.dedent(body).strip() in ARCHITECTURE


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_path_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    paths = re.findall(rf"(?<![\w/.])((?:{'|'.join([*ROOMS, 'tests', 'benchmarks', 'docs'])})/[\w./-]*\w/?)", text)
    committed = [
        path for path in paths if "secrets" not in Path(path).parts
    ]  # a user creates secrets; git ignores them
    assert not [path for path in committed if not (ROOT / path).exists() and not (page.parent / path).exists()]


def test_the_index_lists_each_decision_once_in_order() -> None:
    index = (ROOT / "docs" / "decisions" / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^(\d+)\. \[.+\]\((\d{4}-[\w-]+\.md)\)$", index, re.M)
    assert [name for _, name in listed] == sorted(path.name for path in ROOT.glob("docs/decisions/0*.md"))
    assert [int(number) for number, _ in listed] == list(range(1, len(listed) + 1))
