"""Samples and objective put together: a run's data, and the batches made of it."""
