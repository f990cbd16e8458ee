"""API keys at the endpoint."""
