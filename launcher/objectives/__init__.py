"""Samples → what the model must predict: numpy only, each a pure function of seed and position."""
