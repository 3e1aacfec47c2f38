"""`pretrain drill`: break a run on purpose and show that nothing is lost.

A drill trains a tiny model with the shipped command, does it harm, starts the same command again, and holds the
outcome against a run that nobody disturbed: the same losses and samples at every step, no process left behind, a clear
last line.
"""
