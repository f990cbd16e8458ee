"""The vocabulary: contracts and their translations, records, digests and the error tree."""
