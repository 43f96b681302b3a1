"""Everything that costs or proves privacy: policies, plans, sampling, clipping, noise, accounting, ledger, audit.

Order of use: `policy` -> `plan` -> `compatible.check_model` -> `budget.Spending.reserve` -> `training.train_private` ->
`budget.Spending.commit` -> `claim.Claim`. The only package that imports `opacus` and `dp_accounting`; both are imported
where they are first needed.
"""
