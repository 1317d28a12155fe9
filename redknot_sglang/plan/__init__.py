# SPDX-License-Identifier: Apache-2.0
"""What a segmented request is made of, as data: options, division, repair policies, counts. Imports no SGLang and no torch."""
