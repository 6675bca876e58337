"""Trains one run: reads its spec and data, writes checkpoints, metrics and the result to the store."""
