"""Rules between fields: each is broken once, alone, and its message is checked; then it is kept."""

import pytest

from deploy.config import load_experiment
from deploy.errors import ConfigError

PHANTOM = "data: {kind: phantom, sites: 5}\n"
TOY = "data: {kind: toy, sites: 3}\n"
MAPS = (
    "data: {kind: phantom, founders: /maps, founder_subset: [b]}\n"
    "public: {data: {kind: phantom, scanner_offset: 4, founders: /maps, seed: 1, "
)
PRIVATE = "epsilon: 3, divisor: 4"


@pytest.fixture
def load(tmp_path):
    def load_text(text):
        file = tmp_path / "experiment.yaml"
        file.write_text(text, encoding="utf-8")
        return load_experiment(file)

    return load_text


BROKEN = [
    (TOY + "model: {beta: 2.0}", "model.beta", "beta-vae"),
    ("data: {kind: toy, covariates: 1}\nmodel: {family: cvae, beta: 2.0}", "model.beta", "beta-vae"),
    (TOY + "model: {family: cvae}", "model.family", "needs covariates"),
    ("data: {kind: abide}\nmodel: {family: cvae}", "model.family", "needs covariates"),
    (
        "data: {kind: phantom, size: 32, voxel_mm: 6}\nmodel: {channels: [1, 2, 3, 4, 5]}",
        "model.channels",
        "32 voxels",
    ),
    ("data: {kind: phantom, slab: 8}\nmodel: {channels: [1, 2, 3]}", "model.channels", "axis of 8 voxels"),
    ("data: {kind: phantom, slab: 40}", "data", "slab is 40"),
    ("data: {kind: phantom, visits: [3, 1]}", "data", "visits"),
    ("data: {kind: toy, records: [3, 1]}", "data", "records"),
    ("data: {kind: abide, sites: [NYU, YAIL]}", "data", "YALE"),
    ("data: {kind: nifti, sites: {a: {root: /x, preparation: {shape: [64, 64]}}}}", "data.sites.a", "shape"),
    (
        "data: {kind: dicom, sites: {a: {root: /x, labels: [y], preparation: {shape: [64, 64, 64]}}}}",
        "data.sites.a",
        "table",
    ),
    ("data: {kind: table, sites: {a: {path: /x, features: [x, x]}}}", "data.sites.a", "each once"),
    (TOY + "federation: {strategy: fedprox}", "federation.proximal_mu", "required by `strategy: fedprox`"),
    (TOY + "federation: {proximal_mu: 0.1}", "federation.proximal_mu", "alone; remove"),
    (TOY + "federation: {strategy: trimmed-mean}", "federation.trim", "required"),
    (
        TOY + "federation: {strategy: trimmed-mean, trim: 2}",
        "federation.trim",
        "5 sites or more; there are 3",
    ),
    (TOY + "federation: {strategy: krum, num_byzantine: 1}", "federation.num_byzantine", "5 sites or more"),
    (
        TOY + "federation: {strategy: median, weights: {site-1: 1, site-2: 1, site-3: 2}}",
        "federation.weights",
        "alike",
    ),
    (TOY + "federation: {quorum: 4}", "federation.quorum", "only 3 sites"),
    (TOY + "federation: {weights: {site-1: 1.0}}", "federation.weights", "site-2, site-3 lack one"),
    (TOY + "privacy: {divisor: 4}", "privacy", "exactly one of"),
    (TOY + "privacy: {epsilon: 3, noise_multiplier: 1, divisor: 4}", "privacy", "exactly one of"),
    (TOY + "privacy: {epsilon: 3}", "privacy.divisor", "site-1, site-2, site-3"),
    (
        TOY + "privacy: {epsilon: 3, site_divisors: {site-1: 3, site-3: 4}}",
        "privacy.divisor",
        "for site-2 too",
    ),
    (TOY + f"privacy: {{{PRIVATE}, unit: record}}", "privacy.max_records_per_patient", "must be 1"),
    (TOY + f"privacy: {{{PRIVATE}, momentum: 0.5}}", "privacy.momentum", "sgd"),
    (
        TOY + f"privacy: {{{PRIVATE}, site_divisors: {{site-4: 3}}}}",
        "privacy.site_divisors.site-4",
        "no such site",
    ),
    (TOY + "training: {momentum: 0.5}", "training.momentum", "sgd"),
    (
        TOY + "federation: {sharing: encoder}\ntraining: {trainable: decoder}",
        "training.trainable",
        "`federation.sharing: encoder` lets travel",
    ),
    (
        TOY + f"federation: {{sharing: encoder}}\nprivacy: {{{PRIVATE}, trainable: last}}",
        "privacy.trainable",
        "share what is trained",
    ),
    (TOY + f"privacy: {{{PRIVATE}, optimiser: adam-corrected, momentum: 0.5}}", "privacy.momentum", "sgd"),
    (TOY + f"privacy: {{{PRIVATE}, moment_floor: 0.2}}", "privacy.moment_floor", "adam-corrected"),
    (TOY + f"privacy: {{{PRIVATE}, final_share: 0.2}}", "privacy.final_share", "cosine"),
    (TOY + "training: {final_share: 0.2}", "training.final_share", "cosine"),
    (TOY + "training: {warmup_steps: 100}", "training.warmup_steps", "below the 100 steps of the run"),
    (TOY + "training: {optimiser: adam-corrected}", "training.optimiser", "sgd or adam"),
    (TOY + "federation: {weight_average: 1.0}", "federation.weight_average", "must be < 1"),
    (TOY + "training: {augmentations: 2}", "training.augmentations", "are tables"),
    (TOY + f"privacy: {{{PRIVATE}, augmentations: 2}}", "privacy.augmentations", "are tables"),
    (TOY + "training: {flip: true}", "training.flip", "`augmentations` above 0"),
    (
        "data: {kind: phantom, size: 32, voxel_mm: 6}\ntraining: {augmentations: 1, max_shift: 32}",
        "training.max_shift",
        "smallest axis of 32 voxels",
    ),
    (TOY + f"privacy: {{{PRIVATE}, precision: bf16}}", "privacy.precision", "not with `auto`"),
    (
        TOY + f"engine: {{device: cpu}}\nprivacy: {{{PRIVATE}, precision: bf16}}",
        "privacy.precision",
        "goes with `engine.device: cuda`",
    ),
    (
        TOY + f"privacy: {{{PRIVATE}, subspace: 8, grad_engine: vmap}}",
        "privacy.subspace",
        "needs a `public` section",
    ),
    (
        TOY
        + f"public: {{data: {{kind: toy, seed: 2}}}}\nprivacy: {{{PRIVATE}, subspace: 8, grad_engine: opacus}}",
        "privacy.grad_engine",
        "must be `vmap` with a `subspace`",
    ),
    (TOY + f"privacy: {{{PRIVATE}, subspace: 1025}}", "privacy.subspace", "1024"),
    (TOY + f"privacy: {{{PRIVATE}, bands: 4}}", "privacy.bands", "`mechanism: banded` alone"),
    (TOY + f"privacy: {{{PRIVATE}, mechanism: banded}}", "privacy.bands", "from 2 to local_steps (10)"),
    (
        TOY + f"privacy: {{{PRIVATE}, mechanism: banded, bands: 11}}",
        "privacy.bands",
        "each part has to come up",
    ),
    (
        TOY + f"privacy: {{{PRIVATE}, mechanism: banded, bands: 2, optimiser: adam-corrected}}",
        "privacy.optimiser",
        "must be `sgd` or `adam`",
    ),
    (
        TOY + f"audit: {{}}\nprivacy: {{{PRIVATE}, mechanism: banded, bands: 2}}",
        "audit",
        "does not go with `privacy.mechanism: banded`",
    ),
    (
        TOY + f"privacy: {{{PRIVATE}, mechanism: discrete}}",
        "privacy.grad_engine",
        "must be `vmap` or `opacus` with `mechanism: discrete`",
    ),
    (
        TOY + f"privacy: {{{PRIVATE}, mechanism: discrete, grad_engine: vmap, bands: 4}}",
        "privacy.bands",
        "`mechanism: banded` alone",
    ),
    (TOY + "arms: [mean, mean]", "arms", "2 times"),
    (
        TOY + "arms: [linear-dp]\nlinear: {mean_norm: 3, spread_norm: 3}",
        "arms",
        "`privacy.epsilon`",
    ),
    (
        TOY + "arms: [linear-dp]\nlinear: {mean_norm: 3, spread_norm: 3}\n"
        "privacy: {noise_multiplier: 1, divisor: 4}",
        "arms",
        "the same budget",
    ),
    (
        TOY + f"arms: [linear-dp]\nprivacy: {{{PRIVATE}}}\nlinear: {{mean_norm: 3}}",
        "linear.spread_norm",
        "never a statistic",
    ),
    (TOY + "arms: [warm-start]", "arms", "needs a `public` section"),
    (TOY + "public: {data: {kind: toy}}", "public.data.seed", "the same people"),
    (
        TOY + "public: {data: {kind: toy, seed: 2}}\nfederation: {sharing: decoder}",
        "federation.sharing",
        "must be `all`",
    ),
    (TOY + "public: {data: {kind: toy, seed: 2, records: [3, 1]}}", "public.data", "records"),
    (
        PHANTOM + "public: {data: {kind: phantom, scanner_offset: 5, founders: /maps}}",
        "public.data.seed",
        "deformed alike",
    ),
    (
        PHANTOM + "public: {data: {kind: phantom, seed: 1, scanner_offset: 4, founders: /maps}}",
        "public.data.scanner_offset",
        "give 5 or more",
    ),
    (
        PHANTOM + "public: {data: {kind: phantom, seed: 1, scanner_offset: 5}}",
        "public.data.founders",
        "descend from",
    ),
    (MAPS + "founder_subset: [a, b]}}", "public.data.founders", "descend from"),
    (MAPS + "founder_subset: [c], held_out_founders: [b]}}", "public.data.founders", "descend from"),
    (MAPS.removesuffix(", ") + "}}", "public.data.founders", "descend from"),
    (
        "data: {kind: abide, sites: [NYU, UM]}\npublic: {data: {kind: abide, sites: [UM, YALE]}}",
        "public.data.sites",
        "UM: the patients",
    ),
    (
        "data: {kind: table, sites: {a: {path: /x/a.csv, features: [f]}}}\n"
        "public: {data: {kind: table, sites: {b: {path: /x/../x/a.csv, features: [f]}}}}",
        "public.data.sites.b.path",
        "a site's own data",
    ),
    (TOY + "arms: [federated-dp]", "arms", "privacy"),
    (TOY + "faults: {sitee-1: {drop: true}}", "faults.sitee-1", "no such site"),
    (TOY + "faults: {site-1: {}}", "faults.site-1", "names no fault"),
    (TOY + "faults: {site-1: {drop: true, rounds: [3, 11]}}", "faults.site-1.rounds", "only 10 rounds"),
]


@pytest.mark.parametrize(
    ("text", "path", "rule"), BROKEN, ids=[f"{path}-{rule[:12]}" for _, path, rule in BROKEN]
)
def test_a_broken_rule_is_the_only_problem(load, text, path, rule):
    with pytest.raises(ConfigError) as caught:
        load(text)
    found = caught.value.problems
    assert [problem.path for problem in found] == [path]
    assert rule in found[0].rule
    assert found[0].where.startswith("line ")


@pytest.mark.parametrize(
    "text",
    [
        TOY + "model: {family: beta-vae, beta: 2.0}",
        "data: {kind: toy, covariates: 1}\nmodel: {family: cvae}",
        "data: {kind: phantom, size: 33, voxel_mm: 5.5}\nmodel: {channels: [1, 2, 3, 4, 5]}",
        "data: {kind: phantom, slab: 9}\nmodel: {channels: [1, 2, 3]}",
        "data: {kind: nifti, sites: {a: {root: /x, preparation: {shape: [64, 64], slab: true}}}}",
        TOY + "federation: {strategy: fedprox, proximal_mu: 0.1}",
        PHANTOM + "federation: {strategy: trimmed-mean, trim: 2}",
        PHANTOM + "federation: {strategy: krum, num_byzantine: 1}",
        TOY + "federation: {weights: {site-1: 1, site-2: 1, site-3: 2}, quorum: 3}",
        TOY + "privacy: {noise_multiplier: 1, site_divisors: {site-1: 3, site-2: 3, site-3: 4}}",
        TOY + f"privacy: {{{PRIVATE}, unit: record, max_records_per_patient: 1}}",
        TOY + f"privacy: {{{PRIVATE}, optimiser: sgd, momentum: 0.5}}",
        TOY + f"privacy: {{{PRIVATE}, mechanism: banded, bands: 10}}",
        TOY + f"engine: {{device: cuda}}\nprivacy: {{{PRIVATE}, precision: bf16}}",
        "data: {kind: phantom}\ntraining: {augmentations: 2, max_shift: 3, flip: true, max_gain: 0.1}",
        TOY + "training: {schedule: cosine, final_share: 0.2, warmup_steps: 99}",
        TOY + f"privacy: {{{PRIVATE}, optimiser: adam-corrected, moment_floor: 0.2, schedule: linear}}",
        TOY + f"federation: {{sharing: decoder}}\nprivacy: {{{PRIVATE}, trainable: last}}",
        TOY + "public: {data: {kind: toy, seed: 2}}\narms: [warm-start, federated]",
        TOY + f"public: {{data: {{kind: toy, seed: 2}}}}\nprivacy: {{{PRIVATE}}}\narms: [linear, linear-dp]",
        TOY + f"privacy: {{{PRIVATE}}}\narms: [linear-dp]\nlinear: {{mean_norm: 3, spread_norm: 3}}",
        TOY
        + f"public: {{data: {{kind: toy, seed: 2}}}}\nprivacy: {{{PRIVATE}, subspace: 8, grad_engine: vmap}}",
        "data: {kind: abide, sites: [NYU]}\npublic: {data: {kind: abide, sites: [UM]}, steps: 0}",
        "data: {kind: abide, sites: [NYU]}\npublic: {data: {kind: ds030}}",
        MAPS + "founder_subset: [a]}}",
        PHANTOM + "public: {data: {kind: phantom, seed: 1, scanner_offset: 5, founders: /maps}}",
        TOY + "faults: {dropout: 0.3, site-2: {update: nan, rounds: [1, 10]}}",
        TOY + "faults: {site-1: {delay_s: 3.5}, site-2: {bandwidth_mbit: 2}, site-3: {crash: true}}",
    ],
)
def test_what_keeps_the_rules_loads(load, text):
    load(text)


def test_sites_are_checked_even_where_the_section_has_other_problems(load):
    with pytest.raises(ConfigError) as caught:
        load(
            "data: {kind: abide}\nfederation: {rounds: -1, weights: {NYUU: 1.0}}\n"
            "faults: {dropuot: 0.3, OSHU: {drop: true}}\n"
        )
    hints = {problem.path: problem.suggestion for problem in caught.value.problems}
    assert hints["federation.weights.NYUU"] == "NYU"
    assert hints["faults.OSHU"] == "OHSU"
    assert hints["faults.dropuot"] == "dropout"
    assert "federation.rounds" in hints


def test_no_suggestion_where_two_names_are_equally_near(load):
    with pytest.raises(ConfigError) as caught:
        load(TOY + "faults: {site-9: {drop: true}}")
    assert caught.value.problems[0].suggestion == ""


def test_faults_are_active_in_their_rounds(load):
    faults = load(TOY + "faults: {site-1: {drop: true, rounds: [2]}, site-2: {crash: true}}").faults
    assert [faults.sites["site-1"].active(r) for r in (1, 2, 3)] == [False, True, False]
    assert faults.sites["site-2"].active(7)
    assert faults.dropout == 0.0


def test_divisors_by_site(load):
    privacy = load(TOY + "privacy: {epsilon: 1, divisor: 4, site_divisors: {site-2: 7}}").privacy
    assert [privacy.divisor_of(site) for site in ("site-1", "site-2")] == [4.0, 7.0]
    alone = load(TOY + "privacy: {epsilon: 1, site_divisors: {site-1: 1, site-2: 2, site-3: 3}}").privacy
    with pytest.raises(ValueError, match="site-9"):
        alone.divisor_of("site-9")
