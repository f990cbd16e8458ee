"""The records that stages hand on, with their lineage and provenance."""
