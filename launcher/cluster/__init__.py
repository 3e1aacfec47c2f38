"""Machines: ranks, Slurm, hostfiles."""
