"""Retrieve, auction, constraints, diversify."""
