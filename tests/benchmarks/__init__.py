"""Speed and memory as ratios, measured in one process or one run: `make bench`. Nothing passes or fails on time.

- `figures`: what is measured, and on what machine
- `private_step`: a private training step against a plain one
- `step_memory`: its peak memory, likewise
- `data`: decoding, opening again, and the batches of a later round
- `aggregation`: bytes a second against a memory copy
- `engines`: what a round costs beside training, and starting up, for each engine
- `memory`: peak memory against the number of sites
- `many_sites`: 1,000 and 10,000 virtual sites
- `accelerator`: private steps on a GPU, where there is one
- `federation`: one toy federation in a process of its own, which `engines`, `memory` and `many_sites` measure
"""
