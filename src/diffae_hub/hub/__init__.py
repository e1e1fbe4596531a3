"""Publishing: model cards from measured numbers, and pushing to the Hugging Face Hub."""
