"""Evaluation with lm-eval on offline tasks: multiple choice, generation, and bits per byte of held-back text."""
