"""Files of text: CSV and its dialects, and texts by line or file."""
