"""Fewer weights: gradual pruning by magnitude, slimming of channels, sensitivity."""
