"""What the server knows and what moves it: the catalogue, live counters and histories, events of the store."""
