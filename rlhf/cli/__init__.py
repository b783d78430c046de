"""The `rlhf` command: its subcommands and `rlhf generate`. Nothing imports it but scripts and tests."""
