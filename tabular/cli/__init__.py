"""The `tabular` command: its options, its work and its terminal output. Nothing imports it but scripts and tests."""
