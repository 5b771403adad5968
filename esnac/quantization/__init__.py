"""Fewer bits: quantisers, training with them, and files as small as the bits say."""
