"""Schedules: when something is due, and that it then happens once, whoever notices."""
