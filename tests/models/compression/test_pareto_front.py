"""The Pareto front has the points that no other point dominates."""

from hypothesis import given
from hypothesis import strategies as st

from bloomery.models.compression.pareto_front import dominates, pareto_front

POINTS = st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=12)


@given(POINTS)
def test_exactly_the_points_off_the_front_are_dominated_by_a_point_on_it(points):
    front = pareto_front(points)
    assert front
    assert not any(dominates(points[a], points[b]) for a in front for b in front)
    for position, point in enumerate(points):
        assert (position in front) != any(dominates(points[rival], point) for rival in front)


def test_equal_points_do_not_dominate_each_other():
    assert pareto_front([(1, 2), (1, 2), (2, 2), (0, 3)]) == [0, 1, 3]
