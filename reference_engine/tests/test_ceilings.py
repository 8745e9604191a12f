"""What the machine says of itself."""

from __future__ import annotations

import torch

from nano_qwen3_serving.ceilings import last_level_cache, matmul_rate, read_bandwidth


def test_the_cache_size_is_the_largest_that_linux_names(tmp_path):
    for index, text in enumerate(["48K\n", "1024K\n", "32768K\n", "nonsense\n"]):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(text)
    found = last_level_cache(tmp_path)
    assert found.num_bytes >= 32 << 20 and found.source.endswith("size")


def test_where_the_system_does_not_say_the_assumption_is_stated(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # no sysctl
    found = last_level_cache(tmp_path)
    assert found.num_bytes == 32 << 20 and found.source.startswith("assumed")


def test_rates_are_work_over_time():
    assert read_bandwidth(1 << 22) > 0
    assert matmul_rate(torch.float32, 64) > 0
