"""What in a row an answer is owed to."""
