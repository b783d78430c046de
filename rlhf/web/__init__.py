"""Local web pages: the security and the start of the servers of `rlhf compare` and `rlhf watch`."""
