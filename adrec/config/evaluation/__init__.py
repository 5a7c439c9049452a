"""Configs of the commands that judge."""
