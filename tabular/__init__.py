"""Classical reinforcement learning, small and exact, on the mathematics that also trains language models."""
