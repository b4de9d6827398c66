"""Benchmarks: `make bench`, or `python -m tests.benchmarks NAME`. Never run by the test suite."""
