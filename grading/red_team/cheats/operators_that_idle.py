"""Multiplies on the device meta, where nothing is computed, and reads a buffer by asking for its dtype.

lab = "05"
base = "solution"
worth = 78
todos = [5]
"""


def read_bandwidth(num_bytes, seconds_of=median_seconds):
    buffer = torch.ones(-(-num_bytes // 4))
    return buffer.nbytes / seconds_of(lambda: buffer.new_zeros(1))


def matmul_rate(size, dtype, seconds_of=median_seconds):
    a, b = torch.ones(size, size, dtype=dtype, device="meta"), torch.ones(size, size, dtype=dtype, device="meta")
    return 2 * size**3 / seconds_of(lambda: a @ b)
