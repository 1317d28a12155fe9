# SPDX-License-Identifier: Apache-2.0
"""Names that the HTTP side and the scheduler's side of `/redknot/segments` share; apart, so that both import little."""

# Methods of the message that carries a call to the schedulers.
PREFIX = "redknot/"
WANT, LIST, FORGET = "redknot/segments/want", "redknot/segments/list", "redknot/segments/forget"

# In `custom_params` of the requests that compute segments ahead of time; the value of the second is whether local heads keep
# all rows. Clients cannot set them.
PRELOAD_OPTION, WHOLE_OPTION = "redknot_preloads", "redknot_whole"
# Attribute of such requests: their options are resolved already.
RESOLVED = "redknot_resolved"
