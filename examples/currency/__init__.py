"""A currency service: it always has a fresh quote, and says so when it has not."""
