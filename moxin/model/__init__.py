"""The decoder, its initialisation, and its checkpoints in Hugging Face's format."""
