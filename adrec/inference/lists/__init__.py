"""From scored candidates to lists: catalogue, evidence, the ranker that rank and serve share."""
