"""A DeepSpeed pretraining launcher: from text to a pretrained model in a `transformers` folder."""

__version__ = "0.1.0"
