"""Studies: many runs of one experiment, changed in a few places, and one page that says what the changes did.

- `definition`: the YAML file of a study -> a frozen `Study` -> the runs that it needs
- `running`: runs them, several at a time; what is finished is never run again
- `summary`: scores of the runs -> means and intervals over seeds, paired differences, share of a gap that is closed
- `drawing`, `page`: the frontier as a picture, and `study.html`
"""
