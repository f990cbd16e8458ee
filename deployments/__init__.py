"""The doors: the endpoint, the recipes and the files that put both in front of users."""
