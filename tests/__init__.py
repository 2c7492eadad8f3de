"""The tests, by the package they are about."""
