"""The order of the stages: flows, recipe and command line."""
