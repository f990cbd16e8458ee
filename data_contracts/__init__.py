"""The vocabulary: what data must be, and the records that stages hand on."""
