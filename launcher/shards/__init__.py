"""Token shards on disk: Megatron's format, a manifest beside it."""
