"""How students fare where they run: the time that inference takes."""
