"""The table that a run prints: the median of each figure over the rounds, how far the rounds lie apart, and how peers
compare."""

from dataclasses import dataclass
from statistics import median

SUBJECT = "baremesh"
REFERENCES = ("envoy", "envoy-hbone")
# What is compared with what: connections with connections, requests with requests.
PAIRS = [(SUBJECT, reference) for reference in REFERENCES]
PAIRS += [("baremesh-http", "envoy-http"), ("baremesh-http", "envoy-http2")]


@dataclass(frozen=True)
class Row:
    """One figure: its key in a sample, what it is called, its decimals, and the ratio of baremesh to Envoy that the
    project holds itself to (`at_least` where more is better, `at_most` where less is)."""

    key: str
    label: str
    decimals: int = 0
    at_least: float | None = None
    at_most: float | None = None


ROWS = (
    Row("bulk1_gbit_s", "bulk, 1 stream, Gbit/s", 2, at_least=1.25),
    Row("bulk8_gbit_s", "bulk, 8 streams, Gbit/s", 2, at_least=1.25),
    Row("kept_per_s", "requests/s, 64 kept connections", at_least=1.2),
    Row("kept_p50_us", "  p50, µs"),
    Row("kept_p99_us", "  p99, µs"),
    Row("new_per_s", "new connections/s", at_least=3),
    Row("new_p50_us", "  p50, µs"),
    Row("new_p99_us", "  p99, µs"),
    Row("lone_p50_us", "one request at a time: p50, µs"),
    Row("lone_p99_us", "  p99, µs"),
    Row("bulk1_cpu_s_per_gib", "proxies' CPU s/GiB, 1 stream", 3, at_most=0.85),
    Row("bulk8_cpu_s_per_gib", "proxies' CPU s/GiB, 8 streams", 3, at_most=0.85),
    Row("kept_cpu_s_per_10k", "proxies' CPU s/10,000 requests", 3, at_most=0.8),
    Row("new_cpu_s_per_10k", "proxies' CPU s/10,000 new connections", 3),
    Row("bulk1_machine_s_per_gib", "machine's CPU s/GiB, 1 stream", 3),
    Row("bulk8_machine_s_per_gib", "machine's CPU s/GiB, 8 streams", 3),
    Row("kept_machine_s_per_10k", "machine's CPU s/10,000 requests", 3),
    Row("new_machine_s_per_10k", "machine's CPU s/10,000 new connections", 3),
    Row("rss_idle_client_mib", "memory idle, client's side, MiB", 1, at_most=0.25),
    Row("rss_idle_server_mib", "memory idle, server's side, MiB", 1, at_most=0.25),
    Row("rss_held_client_mib", "  with 1,000 idle connections, client's", 1),
    Row("rss_held_server_mib", "  with 1,000 idle connections, server's", 1),
    Row("rss_peak_client_mib", "  peak, client's", 1),
    Row("rss_peak_server_mib", "  peak, server's", 1),
)


def render(samples, peers):
    """The table as text. `samples` are the run's, failed ones without metrics."""
    values = {peer: [sample["metrics"] for sample in samples if sample["peer"] == peer and "metrics" in sample]
              for peer in peers}
    pairs = compared(peers)
    table = [["", *peers, *(f"{subject} / {reference}" for subject, reference in pairs)]]
    for row in ROWS:
        if any(row.key in metrics for peer in peers for metrics in values[peer]):
            table.append([row.label, *(cell(row, values[peer]) for peer in peers),
                          *(ratio_cell(row, samples, pair) for pair in pairs)])
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    lines = ["  ".join(text.ljust(width) if column == 0 else text.rjust(width)
                       for column, (text, width) in enumerate(zip(line, widths))).rstrip() for line in table]
    lines.insert(1, "-" * len(max(lines, key=len)))
    return "\n".join(lines)


def compared(peers):
    """Which peers stand in relation: each form of baremesh to Envoy's of the same kind; without any, Envoy's to each other."""
    found = [pair for pair in PAIRS if set(pair) <= set(peers)]
    return found or [pair for pair in [(REFERENCES[1], REFERENCES[0])] if set(pair) <= set(peers)]


def cell(row, metrics):
    """The median, and the largest distance of a round from it in percent."""
    found = [each[row.key] for each in metrics if row.key in each]
    middle = median(found) if found else 0
    if not middle:
        return "-"
    spread = max(abs(value - middle) for value in found) / middle
    return f"{middle:,.{row.decimals}f} ±{spread:.0%}" if len(found) > 1 else f"{middle:,.{row.decimals}f}"


def ratio_cell(row, samples, pair):
    """The median of the rounds' own ratios, so that a machine that slows down between rounds does not count; with what
    the project asks of it, where it asks."""
    ratios = ratios_by_round(row.key, samples, pair)
    if not ratios:
        return "-"
    ratio = median(ratios)
    text = f"{ratio:.2f}"
    if pair != (SUBJECT, REFERENCES[0]):
        return text
    if row.at_least is not None:
        return f"{text} (≥{row.at_least:g} {'met' if ratio >= row.at_least else 'MISSED'})"
    if row.at_most is not None:
        return f"{text} (≤{row.at_most:g} {'met' if ratio <= row.at_most else 'MISSED'})"
    return text


def ratios_by_round(key, samples, pair):
    rounds = {}
    for sample in samples:
        rounds.setdefault(sample["round"], {})[sample["peer"]] = sample.get("metrics", {}).get(key)
    both = ([found.get(peer) for peer in pair] for found in rounds.values())
    return [subject / reference for subject, reference in both if subject is not None and reference]
