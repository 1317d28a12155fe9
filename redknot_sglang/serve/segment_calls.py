# SPDX-License-Identifier: Apache-2.0
"""Names that the HTTP side and the scheduler's side of calls share, so that neither imports the other: `/redknot/segments` and
`/redknot/inspect`.
"""

# Methods of the message that carries a call to the schedulers.
PREFIX = "redknot/"
WANT, LIST, FORGET = "redknot/segments/want", "redknot/segments/list", "redknot/segments/forget"
INSPECT = "redknot/inspect"

# Keys in `custom_params` of requests that compute segments ahead of time, which clients cannot set: the first marks such a
# request, the second says whether the segment keeps local slots of all its tokens, as `blend` needs.
PRELOAD_OPTION, WHOLE_OPTION = "redknot_preloads", "redknot_whole"
# An attribute that such requests have, which says that their options need no more checks.
RESOLVED = "redknot_resolved"
