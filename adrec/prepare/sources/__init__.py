"""One adapter a raw format; each yields canonical tables."""
