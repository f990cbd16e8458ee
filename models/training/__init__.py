"""The training loop, what feeds it, and what it leaves behind."""
