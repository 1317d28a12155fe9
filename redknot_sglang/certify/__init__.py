# SPDX-License-Identifier: Apache-2.0
"""Making a certificate: a head map and repair policies are measured through servers, against stock SGLang.

`run.py` leads through it: plan, questions, servers, verdict, record. Nothing here imports SGLang or torch.
"""
