"""What is evaluated: each task asks the model for something and scores what came of it."""
