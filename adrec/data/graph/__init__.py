"""The graph of entities that ads are linked to: links, what models read of them, vectors of entities."""
