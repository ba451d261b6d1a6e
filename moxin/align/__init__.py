"""Alignment of a pretrained model: supervised fine-tuning on chats, then direct preference optimisation."""
