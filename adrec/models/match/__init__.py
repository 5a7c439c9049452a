"""How near a candidate is to what its user did and said: one table of columns, which network, trees and logit read."""
