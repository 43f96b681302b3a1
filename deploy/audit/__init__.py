"""The audit for people: is what a hospital's ledger says true, within its rules, and what does it mean for patients?

Order of use: `collect.audit_site` or `collect.audit_run` -> `document.AuditReport` -> `write.write`. Facts are
collected once and are values; `verdict` puts them in words, `page` shows them, `registry` fills in a public register.

    document   what a report holds; no logic but "the worst status of all"
    ledgers    open a ledger, entry by entry, tampered ones as far as they go
    accounts   what was spent, by both accountants and by the ledger's own rule
    witnesses  claims and heads that others kept, held against the ledger
    policies   reservations held against a hospital's policy
    evidence   attacks: found beside a run, or made now on made-up patients
    coverage   what left, and what epsilon does not cover
    disclosures, gaps   NIST SP 800-226 item by item; what only a person can answer

It reads; it never writes to a ledger and opens no patient's data. It never says that data are beyond re-identification:
it is evidence for somebody's assessment.
"""
