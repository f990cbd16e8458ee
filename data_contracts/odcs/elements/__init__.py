"""The elements of a contract file: properties with types and quality checks, servers, service levels, descriptions."""
