"""One module for each schema version, named by its number."""
