"""The mathematics: no orchestrator, tracker or server."""
