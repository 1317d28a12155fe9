# SPDX-License-Identifier: Apache-2.0
"""The methods that measure how much each head needs the whole context, by name.

Each takes a `Study` and returns `Evidence`. A new one is a file here, a line in METHODS, and its name in
`cli/profile_options.py`.
"""

from __future__ import annotations

from collections.abc import Callable

from redknot_sglang.profile.methods.ablation import ablation
from redknot_sglang.profile.methods.distortion import distortion
from redknot_sglang.profile.methods.gates import gates
from redknot_sglang.profile.methods.greedy import greedy
from redknot_sglang.profile.methods.mass import mass
from redknot_sglang.profile.study import Evidence, Study

Method = Callable[[Study], Evidence]

METHODS: dict[str, Method] = {
    "mass": mass,
    "distortion": distortion,
    "gates": gates,
    "ablation": ablation,
    "greedy": greedy,
}

__all__ = ["METHODS", "Method"]
