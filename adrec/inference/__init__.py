"""The Predictor (bundle to scores), explanations, export."""
