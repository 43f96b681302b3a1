"""Everything that costs or proves privacy: plans, sampling, clipping, noise, accounting, claims.

Order of use: `plan` -> `compatible.check_model` -> `claim.Spending.reserve` -> `training.train_private` ->
`claim.Claim`. The only package that imports `opacus` and `dp_accounting`; both are imported where they are
first needed.
"""
