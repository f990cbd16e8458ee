"""The sections of a recipe that every room needs: data source, engine, periods, approval."""
