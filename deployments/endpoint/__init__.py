"""What answers requests inside a bento: versions of a model, and the HTTP that reaches them."""
