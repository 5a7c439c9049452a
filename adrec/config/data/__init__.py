"""Configs of the commands that make and look at data."""
