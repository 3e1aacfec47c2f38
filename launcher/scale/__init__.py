"""Scaling tests: one recipe on growing numbers of ranks or nodes."""
