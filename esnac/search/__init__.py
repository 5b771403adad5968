"""Bayesian optimisation over the students of a teacher."""
