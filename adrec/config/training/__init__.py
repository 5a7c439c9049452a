"""Configs of the commands that train, and of what they share."""
