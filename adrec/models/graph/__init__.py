"""Models of the links between entities, and how they are trained."""
