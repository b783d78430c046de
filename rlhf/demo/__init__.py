"""The demo: all stages on film reviews, with goals that the result must meet. May import every other part of `rlhf`."""
