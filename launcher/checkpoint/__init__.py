"""What the engine leaves behind, and how it comes back."""
