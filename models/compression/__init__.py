"""From a trained network to what ships: smaller, faster, and measured."""
