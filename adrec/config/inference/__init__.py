"""Configs of the commands that apply a bundle."""
