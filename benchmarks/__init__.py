"""The speeds of docs/benchmarks.md, each as a ratio of two sides measured in turn: `python -m benchmarks`."""
