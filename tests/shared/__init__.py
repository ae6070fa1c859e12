"""What several test modules use; none of them imports another, or conftest.py (test_lanes.py)."""

import pytest

pytest.register_assert_rewrite(f"{__name__}.runs", f"{__name__}.answer_spans")  # so that a failure shows the values
