"""The kit's tests, one file a theme."""
