"""`pretrain checkpoints`: a run's checkpoints looked at, checked, deleted, and taken over from DeepSpeed."""
