"""How a source is read: format, text, and options of the readers."""
