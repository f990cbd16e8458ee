"""Readers of files in the formats of particular applications: Excel, SQLite, Weka, NumPy, Hugging Face."""
