"""Architectures as graphs: trace, channel groups, moves, encoding, cost, execution."""
