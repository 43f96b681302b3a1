"""`python -m deploy ledger`: what a hospital's IT, data lead and data-protection officer do with its privacy ledger."""
