"""Pages that stand alone: one look, one base, two languages; no script, nothing fetched."""
