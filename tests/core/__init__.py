"""What the words mean: laws as properties, and golden records in `core/examples`."""
