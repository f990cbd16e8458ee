"""The columns that Bloomery reads: types, limits and rules, derived from the properties of a contract file."""
