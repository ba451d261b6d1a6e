"""The release: weights in Hugging Face format, checked against `transformers`, with a model card."""
