"""Tables of databases, lakehouses and Hive."""
