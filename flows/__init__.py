"""The order of the stages, the recipe, and the command line."""
