"""Why this ad for this user: contributions that add up, counterfactuals, and a plain sentence."""
