"""Sends messages to users."""
