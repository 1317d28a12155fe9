# SPDX-License-Identifier: Apache-2.0
import pytest

from redknot_sglang.measure.table import format_table


def test_columns_are_aligned_and_widths_follow_the_longest_cell() -> None:
    text = format_table(["task", "right"], [["lookup", "7"], ["x", "123456"]])
    assert text.splitlines() == [
        "task     right",
        "------  ------",
        "lookup       7",
        "x       123456",
    ]


def test_a_row_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="1 cells for 2 columns"):
        format_table(["a", "b"], [["1"]])
