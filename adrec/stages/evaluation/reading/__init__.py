"""Scored rows as they are judged: read, lined up with others, with their labels, as tasks."""
