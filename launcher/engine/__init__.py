"""The step loop around DeepSpeed."""
