"""A small made-up world with known truth: documents to learn it from, questions about it, and dirt planted on purpose."""
