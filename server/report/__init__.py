"""The report of a federated run: `write(report, folder)` makes `report.html` and `report.json`.

    attacks    what attacks have shown; evidence: in words
    document   what a report holds (frozen values, filled by whoever ran it)
    verdict    the numbers in plain words, never more than they show; promise: what is promised to a patient
    measures   how to read a metric; words: numbers and names as text
    figures    plots of the run; arms: of results; canvas: their style
    slices     the images of a report; panels: drawn
    tables     tables, and the terminal's summary
    export     strict JSON and its schema
    page       the self-contained page

matplotlib, jinja2 and Pillow are imported only when something is drawn.
"""

from server.report.document import (
    ALONE,
    CENTRALISED,
    FEDERATED,
    FEDERATED_DP,
    MEAN,
    OWN_PATIENTS,
    SITE_MEAN,
    WARM_START,
    Attendance,
    DifferenceRow,
    LatentUse,
    MetricFacts,
    ModelFacts,
    PlanFacts,
    PrivacyFacts,
    RejectedRow,
    Report,
    ResultRow,
    RoundEpsilon,
    SiteCurve,
    SitePrivacy,
    Timings,
    alone,
    status_of,
)
from server.report.export import SCHEMA, to_document, to_json
from server.report.page import render, write
from server.report.promise import banner
from server.report.slices import Panels
from server.report.tables import summary_text
from server.report.verdict import cautions, verdict

__all__ = [
    "ALONE",
    "CENTRALISED",
    "FEDERATED",
    "FEDERATED_DP",
    "MEAN",
    "OWN_PATIENTS",
    "SCHEMA",
    "SITE_MEAN",
    "WARM_START",
    "Attendance",
    "DifferenceRow",
    "LatentUse",
    "MetricFacts",
    "ModelFacts",
    "Panels",
    "PlanFacts",
    "PrivacyFacts",
    "RejectedRow",
    "Report",
    "ResultRow",
    "RoundEpsilon",
    "SiteCurve",
    "SitePrivacy",
    "Timings",
    "alone",
    "banner",
    "cautions",
    "render",
    "status_of",
    "summary_text",
    "to_document",
    "to_json",
    "verdict",
    "write",
]
