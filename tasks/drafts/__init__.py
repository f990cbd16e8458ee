"""A contract and a recipe drafted from data: what is in it, what it may mean, and both written with the reasons."""
