"""A real kind cluster on this machine, for trying the grid out and for the tests: `python -m k8s.kind up`."""
