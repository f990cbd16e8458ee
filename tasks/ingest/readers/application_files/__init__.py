"""Readers of files in the formats of particular applications: Excel, SQLite, Weka, Stata, NumPy, Hugging Face."""
