"""`transformers` models, from a recipe's numbers or a folder."""
