"""Cohorts (patients -> records) from BIDS trees, tables, DICOM series, public sets and phantoms."""
