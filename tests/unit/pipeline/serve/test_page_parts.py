"""The trend, the plots and the regions of the status page and of /v1/density."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lodestream.pipeline.serve.models import ParagraphDensity
from lodestream.pipeline.serve.plots import plot_histogram, plot_runs, plot_shares, plot_trend
from lodestream.pipeline.serve.regions import find_regions
from lodestream.pipeline.serve.trend import BUCKET_S, NUM_BUCKETS, Trend

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def paragraph(ordinal: int, density: float) -> ParagraphDensity:
    start = ordinal * 10
    return ParagraphDensity(
        ordinal=ordinal, kind="text", char_start=start, char_end=start + 8, token_count=2, density=density
    )


@given(st.lists(st.floats(0, 1), max_size=30), st.floats(0, 1))
def test_regions_partition_the_paragraphs(densities: list[float], threshold: float) -> None:
    paragraphs = [paragraph(ordinal, density) for ordinal, density in enumerate(densities)]
    regions = find_regions(paragraphs, threshold)
    assert sum(region.num_paragraphs for region in regions) == len(paragraphs)
    assert all(one.dense != other.dense for one, other in pairwise(regions))
    for region in regions:
        inside = [p for p in paragraphs if region.char_start <= p.char_start < region.char_end]
        assert {p.density >= threshold for p in inside} == {region.dense}


def test_trend_keeps_the_worst_of_each_bucket_for_a_day() -> None:
    trend = Trend()
    now = NOW.timestamp()
    for value in (3.0, 9.0, 4.0):
        trend.add(now, value)
    assert trend.points(now)[-1] == 9.0
    assert trend.points(now + BUCKET_S)[-2:] == [9.0, None]
    trend.add(now + NUM_BUCKETS * BUCKET_S, 1.0)
    assert [point for point in trend.points(now + NUM_BUCKETS * BUCKET_S) if point is not None] == [1.0]


def test_runs_tell_how_old_the_content_grew_between_them() -> None:
    ends = [NOW - timedelta(minutes=minutes) for minutes in (40, 20, 5)]
    trend = Trend()
    trend.seed([{"ended_at": end.isoformat()} for end in ends], until_s=NOW.timestamp())
    points = trend.points(NOW.timestamp())
    assert max(point for point in points if point is not None) == 20 * 60
    assert points[0] is None


@given(st.lists(st.none() | st.floats(0, 1e6), max_size=NUM_BUCKETS), st.none() | st.floats(0.1, 1e6))
def test_every_trend_can_be_drawn(points: list[float | None], target_s: float | None) -> None:
    ET.fromstring(str(plot_trend(points, target_s=target_s)))


def test_plots_are_well_formed_and_escape_names() -> None:
    run = {
        "run_id": "<b>&",
        "ended_at": NOW.isoformat(),
        "seconds": 1.5,
        "documents": {"seen": 3},
        "segments_encoded": 2,
    }
    for svg in (
        plot_runs([run, run | {"segments_encoded": 0}]),
        plot_histogram([0, 5, 10], threshold=0.2),
        plot_shares({"<memory>": 3, "disk": 0, "snapshot": 1}),
    ):
        drawn = ET.fromstring(str(svg))
        assert len(drawn) >= 2
        assert "<b>" not in str(svg)
    assert plot_shares({"snapshot": 0}) == ""
    assert plot_runs([]) == ""


@pytest.mark.parametrize(("threshold", "dense"), [(0.0, 4), (0.5, 2), (1.0, 0)])
def test_histogram_parts_dense_from_sparse(threshold: float, dense: int) -> None:
    drawn = ET.fromstring(str(plot_histogram([1, 1, 1, 1], threshold=threshold)))
    assert sum(bar.get("class") == "dense" for bar in drawn) == dense
