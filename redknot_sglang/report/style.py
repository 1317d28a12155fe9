# SPDX-License-Identifier: Apache-2.0
"""The page's style sheet: one set of names for colours, with values for light and for dark screens and for paper."""

from __future__ import annotations

# Number of colours for methods, controls and policies. They can be told apart without colour vision (after Okabe and Ito,
# 2008).
SERIES = 8

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --panel: #f5f7f9; --ink: #1d2733; --soft: #5b6875; --rule: #d5dce3;
  --global: #15446e; --local: #a9c6df; --good: #1b7f4b; --bad: #b3261e;
  --s0: #0072b2; --s1: #d55e00; --s2: #009e73; --s3: #a8528a; --s4: #b58900; --s5: #6b7785; --s6: #8d5a3b; --s7: #333333;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14181d; --panel: #1c2229; --ink: #e6ebf0; --soft: #9aa7b4; --rule: #37414b;
    --global: #6fb1ea; --local: #2f4a63; --good: #5fd198; --bad: #ff8a80;
    --s0: #56b4e9; --s1: #f0884a; --s2: #3fc79a; --s3: #dc8fc4; --s4: #e6c229; --s5: #8d9aa8; --s6: #c99a77; --s7: #e0e0e0;
  }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 68rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.2rem; margin: 0 0 .5rem; }
h3 { font-size: 1rem; margin: 1.25rem 0 .25rem; }
p { margin: .35rem 0; max-width: 52rem; } .soft { color: var(--soft); }
section { margin-top: 2rem; padding-top: 1.25rem; border-top: 1px solid var(--rule); }
.figure { overflow-x: auto; margin: .75rem 0; }
.badge { display: inline-block; padding: .1rem .6rem; margin: .15rem .35rem .15rem 0; border-radius: 1rem;
  border: 1.5px solid currentColor; font-size: .9rem; font-weight: 600; }
.pass { color: var(--good); } .fail { color: var(--bad); }
.key { display: inline-flex; align-items: center; margin-right: 1.1rem; font-size: .875rem; }
.key svg { margin-right: .4rem; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem .25rem 0; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; } th:first-child, td:first-child { text-align: left; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem; font-size: .9rem; margin: .5rem 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
summary { cursor: pointer; color: var(--soft); }
svg { display: block; max-width: none; }
svg text { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: var(--ink); }
svg text.soft { fill: var(--soft); } svg text.strong { font-weight: 600; }
svg .axis { stroke: var(--soft); stroke-width: 1; } svg .grid { stroke: var(--rule); stroke-width: 1; }
svg .whisker { stroke: var(--ink); stroke-width: 1.25; }
svg rect.global { fill: var(--global); } svg rect.local { fill: var(--local); } svg rect.evidence { fill: var(--s1); }
svg rect.frame { fill: none; stroke: var(--rule); }
svg polyline { fill: none; stroke-width: 1.5; stroke-linejoin: round; }
svg polyline.global { stroke: var(--global); stroke-width: 2; } svg polyline.local { stroke: var(--s4); }
svg polyline.pareto { stroke: var(--soft); stroke-dasharray: 5 4; }
svg .chosen { fill: none; stroke: var(--ink); stroke-width: 2; }
""" + "".join(
    f"svg .f{i} {{ fill: var(--s{i}); }} svg .o{i} {{ fill: var(--paper); stroke: var(--s{i}); stroke-width: 2; }}\n"
    for i in range(SERIES)
)
