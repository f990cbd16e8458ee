"""Model version, micro-batching, explanations and shadow requests."""
