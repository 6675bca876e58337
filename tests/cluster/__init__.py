"""Tests on a real Kubernetes; `conftest.py` says how to write one."""
