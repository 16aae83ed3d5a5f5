"""What several files of unit tests read and none changes, made once a process."""

import pytest


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """The store that report_factory.fill makes, and the files of its report."""
    # Here, so that tests of other rooms need not import what draws pictures.
    from report_factory import fill

    from rowsft import report

    root = tmp_path_factory.mktemp("report")
    store = fill(root / "runs")
    return store, report.build(root / "runs", "demo", root / "out")
