"""Settings, engines, files and processes."""
