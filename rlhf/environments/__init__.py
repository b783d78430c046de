"""Environments that answer the policy: a protocol for the user's classes, and a batch of them stepped together."""
