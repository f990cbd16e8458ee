"""The mathematics: plain functions and modules that know no orchestrator, tracker, registry or server."""
