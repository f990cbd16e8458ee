"""Batches checked against a contract, by Arrow and by Great Expectations."""
