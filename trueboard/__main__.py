"""`python -m trueboard`, the same as the command `trueboard`."""

from trueboard.cli import main

main()
