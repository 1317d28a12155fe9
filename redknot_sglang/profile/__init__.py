# SPDX-License-Identifier: Apache-2.0
"""Finding a head map by measurement: `redknot profile`.

Needs torch and transformers, never SGLang: a model is profiled outside the server that will serve it.
"""
