"""The HTTP server over the Predictor."""
