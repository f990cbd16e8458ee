"""A client's rows, checked against a contract."""
