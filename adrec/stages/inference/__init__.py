"""Commands that apply a bundle."""
