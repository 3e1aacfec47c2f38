"""What the user asked for: recipes, batch arithmetic, DeepSpeed's JSON."""
