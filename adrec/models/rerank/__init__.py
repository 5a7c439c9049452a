"""A language model that reads the user's history and an ad together, in words, and says how likely a click is."""
