"""Methods that turn a trained network into a smaller one."""
