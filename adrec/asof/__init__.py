"""What was known at a moment: counters and histories, the same in every command."""
