"""The order of the stages: flows, recipe and command line. Importing it sets the environment of the engines."""

from bloomery.tasks.infrastructure.engine_environment import apply_engine_environment

apply_engine_environment()
