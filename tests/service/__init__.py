"""What every process has: a file of tests per module."""
