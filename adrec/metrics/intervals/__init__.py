"""How sure a metric is: bootstrap over users, paired differences, intervals of rates, corrections for many comparisons."""
