"""Queues in a file: what `queues.yaml` may say, how it is read, and what it comes to."""
