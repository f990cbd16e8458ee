"""Batches, streaming, prefetching and augmentation."""
