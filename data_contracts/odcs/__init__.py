"""The contract model, as the Open Data Contract Standard defines it."""
