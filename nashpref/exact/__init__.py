"""Exact equilibria: the solvers behind `nashpref.equilibrium`."""
