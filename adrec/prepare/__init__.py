"""Raw logs to the prepared folder."""
