"""One decoder for all families, its cache, heads and files."""
