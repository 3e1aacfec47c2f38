"""A DeepSpeed pretraining launcher: text → shards → masked, causal or span-corruption pretraining → `transformers` folder."""

__version__ = "0.1.0"
