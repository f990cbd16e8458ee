"""MLflow runs and resource usage."""
