"""What the rows of a source show: columns, types, statistics, order, leaks."""
