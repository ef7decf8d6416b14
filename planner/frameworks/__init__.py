"""What each framework can do, what it holds beside the model, and its habits."""
