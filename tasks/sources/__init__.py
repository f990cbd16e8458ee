"""A file per family of formats: how each is found, identified and read as Arrow batches."""
