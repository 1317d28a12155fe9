# SPDX-License-Identifier: Apache-2.0
"""What a profile cannot do for its user."""


class ProfileError(ValueError):
    """A model, data or options that cannot be profiled; the message is one line that says what to do."""
