"""`python -m deploy plan --tune`: the settings of the private arm, chosen by public data alone."""
