# SPDX-License-Identifier: Apache-2.0
"""What a segmented request is made of, as plain data.

A *segmented* request reuses parts of its prompt, its *segments* (documents), wherever they stand. The files here read
its options, divide its prompt, define the repair policies and count operations. Nothing here imports SGLang or torch.
"""
