# SPDX-License-Identifier: Apache-2.0
"""Pretrained weights and questions from public text (docs/real-models.md).

`models.py` names the models, `fetch.py` and `convert.py` make a folder of each, `get.py` is the command behind `make real`.
`questions.py` is the command that writes questions; `sources.py`, `splits.py` and `prompts.py` are its parts.
"""
