"""A folder of bundles, one a day, and the one of them that is served."""
