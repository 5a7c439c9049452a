"""Pictures and sounds of strangers: bytes from files, stores and cells, and what they hold."""
