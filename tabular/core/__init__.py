"""The shared mathematics: pure functions, torch only. Time is the last axis; masks are True on real steps."""
