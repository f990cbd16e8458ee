"""The Pareto front has the points that no other point dominates."""

from hypothesis import given
from hypothesis import strategies as st

from bloomery.models.compression.pareto_front import dominates, pareto_front

POINTS = st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=12)


@given(POINTS)
def test_points_off_the_front_are_dominated_by_one_on_it_and_points_on_it_are_not(points):
    on = pareto_front(points)
    assert on
    assert not any(dominates(points[a], points[b]) for a in on for b in on)
    for place, point in enumerate(points):
        assert (place in on) != any(dominates(points[other], point) for other in on)


def test_equal_points_do_not_dominate_each_other():
    assert pareto_front([(1, 2), (1, 2), (2, 2), (0, 3)]) == [0, 1, 3]
