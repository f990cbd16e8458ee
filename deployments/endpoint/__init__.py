"""The server inside a bento."""
