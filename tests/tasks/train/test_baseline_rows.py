"""The training rows that baselines are fitted to: few enough to be held in memory."""

from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.tasks.train.baselines import _num_rows_read


def test_wide_rows_are_fewer():
    assert _num_rows_read(Layout(kind="flat", shape=(20,))) == 50_000
    layout = Layout(kind="image", shape=(3, 224, 224))
    assert _num_rows_read(layout) * layout.num_values * 4 <= 1 << 30
    assert _num_rows_read(Layout(kind="image", shape=(3, 20_000, 20_000))) == 1
