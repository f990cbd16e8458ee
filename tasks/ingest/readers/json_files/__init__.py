"""Files of JSON: documents, and an object per line."""
