"""Pinned requirements of a bento."""

from bloomery.tasks.bentos.requirements import pin_requirements


def test_packages_are_pinned_with_all_their_dependencies() -> None:
    names = [line.split("==")[0] for line in pin_requirements(["bentoml", "pydantic"])]
    assert {"bentoml", "pydantic", "pydantic-core", "starlette", "uvicorn", "h11"} <= set(names)
    assert names == sorted(names)
    # grpcio belongs to an extra that was not requested.
    assert "grpcio" not in names
