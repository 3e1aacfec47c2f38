"""The peers' sides, run by the python of their own environment; nothing here imports the project."""
