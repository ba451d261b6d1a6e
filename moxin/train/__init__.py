"""Training: one loop for every objective, on one process or on Ray Train with DeepSpeed."""
