"""Final stages: what happens to the best students after the search."""
