"""What server and clients agree on: API keys, signatures, champion pointer, prediction log."""
