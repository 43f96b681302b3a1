"""What only a person can answer: asked in every report, in amber, and marked in the registry entry."""

from __future__ import annotations

from deploy.audit.document import Gap, Subject

MARK = "TO BE FILLED IN BY A PERSON:"
"""Every text in the registry entry that waits for a person begins with it."""

_DEPLOYMENT = "deployment."


def list_gaps(subject: Subject) -> tuple[Gap, ...]:
    """Return the questions that no software can answer about a hospital's study.

    Args:
        subject: What was audited; a hospital's own audit asks about its rooms and people, too.
    """
    asked = [
        Gap(
            name="justification",
            question="Who decided on this epsilon, delta and unit, and why are they right for these patients?",
            why="No threshold is right for all (NIST SP 800-226); a supervisory authority will ask for the reasons.",
            registry=f"{_DEPLOYMENT}implementation.justification",
        ),
        Gap(
            name="purpose",
            question="What is the model for, and on what legal ground were the patients' data used?",
            why="GDPR articles 5, 6, 9 and 30; the registry's intended use.",
            registry=f"{_DEPLOYMENT}basic.intended_use",
        ),
        Gap(
            name="curators",
            question="Which institutions answer for the model?",
            why="GDPR articles 24 and 26; the registry's curators.",
            registry=f"{_DEPLOYMENT}basic.data_curators",
        ),
        Gap(
            name="region",
            question="Where do the patients live, and whose law applies?",
            why="The registry's region.",
            registry=f"{_DEPLOYMENT}basic.data_product_region",
        ),
        Gap(
            name="publication",
            question="When was, or will, the model be released, and to whom?",
            why="What happens to the model afterwards decides who the adversaries are.",
            registry=f"{_DEPLOYMENT}basic.publication_date",
        ),
        Gap(
            name="tuning",
            question="Were these patients' data looked at, cleaned, or used to choose settings outside this software?",
            why="What such work revealed is not in epsilon (NIST SP 800-226: pre-processing and tuning).",
            registry=f"{_DEPLOYMENT}implementation.preprocessing_and_hyperparameter_tuning",
        ),
        Gap(
            name="post-processing",
            question="What does the centre do to the model before it is released, and by which figures does it choose?",
            why="Choosing by figures measured on patients without noise costs privacy that nobody counted.",
            registry=f"{_DEPLOYMENT}accounting.post_processing",
        ),
        Gap(
            name="trust",
            question="Who at the centre can see single updates, and may sites pool what they know?",
            why="The trust model (NIST SP 800-226) is about people and contracts.",
            registry=f"{_DEPLOYMENT}deployment_model.actors",
        ),
        Gap(
            name="access",
            question="Who can reach the raw data, the site key and the salt, and who checks that?",
            why="Epsilon protects against what is sent, not against whoever can open the files.",
            registry=f"{_DEPLOYMENT}implementation.mechanisms",
        ),
        Gap(
            name="retention",
            question="Where do the raw data lie, how long are they kept, and who else holds copies?",
            why="Exposure of the data that were collected (NIST SP 800-226, the base of the pyramid).",
        ),
        Gap(
            name="fairness",
            question="For whom does the model work worse (age, sex, scanner, site), and did the noise make that worse?",
            why="Noise costs small groups most; the software knows no groups.",
        ),
        Gap(
            name="assessment",
            question="Has the data-protection officer advised, and is there an impact assessment (GDPR article 35)?",
            why="EDPB Opinion 28/2024: measures have to be shown in documents. This report is evidence for them.",
        ),
    ]
    if subject.kind == "run":
        asked.append(
            Gap(
                name="deployment",
                question="This was a simulation. What will differ at real hospitals: data, sites, network, people?",
                why="A simulation shows what the plan would cost; it protects nobody.",
            )
        )
    return tuple(asked)
