"""The table that a run prints: the median of each figure over the rounds, how far the rounds lie apart, and how peers
compare."""

from dataclasses import dataclass
from statistics import median

SUBJECT = "baremesh"
REFERENCES = ("envoy", "envoy-hbone")
# Requests are compared with the better of Envoy's pairs, figure by figure.
HTTP_SUBJECT = "baremesh-http"
HTTP_REFERENCES = ("envoy-http", "envoy-http2")
# What policies cost: the same, with many of them in force.
POLICIES_SUBJECT = "baremesh-policies"
POLICIES_REFERENCES = (HTTP_SUBJECT,)
BASE = "direct"


@dataclass(frozen=True)
class Row:
    """One figure: its key in a sample, what it is called, its decimals, and the ratios of baremesh to Envoy that the
    project holds itself to, at least where more is better, at most where less is: `aim` for connections, `http_aim` for
    requests, `policies_aim` for policies beside none."""

    key: str
    label: str
    decimals: int = 0
    more_is_better: bool = False
    aim: float | None = None
    http_aim: float | None = None
    policies_aim: float | None = None
    is_compared: bool = True


ROWS = (
    Row("bulk1_gbit_s", "bulk, 1 stream, Gbit/s", 2, more_is_better=True, aim=1.25),
    Row("bulk8_gbit_s", "bulk, 8 streams, Gbit/s", 2, more_is_better=True, aim=1.25),
    Row("kept_per_s", "requests/s, 64 kept connections", more_is_better=True, aim=1.2, http_aim=1.5),
    Row("kept_p50_us", "  p50, µs"),
    Row("kept_p99_us", "  p99, µs"),
    Row("http2_per_s", "HTTP/2 requests/s, 8 connections of 8 streams", more_is_better=True, http_aim=1.5),
    Row("grpc_per_s", "calls in gRPC's form/s, the same", more_is_better=True, http_aim=1.5),
    Row("new_per_s", "new connections/s", more_is_better=True, aim=3),
    Row("new_p50_us", "  p50, µs"),
    Row("new_p99_us", "  p99, µs"),
    Row("lone_p50_us", "one request at a time: p50, µs"),
    Row("lone_p99_us", "  p99, µs"),
    Row("rate_p50_us", "1,000 requests/s, open loop: p50, µs"),
    Row("rate_p99_us", "  p99, µs"),
    Row("rate_added_p50_us", "  added to direct's p50, µs"),
    Row("rate_added_p99_us", "  added to direct's p99, µs", http_aim=0.7),
    Row("rate_late_p50_us", "  of it the loader's own lateness: p50, µs", is_compared=False),
    Row("rate_late_p99_us", "  of it the loader's own lateness: p99, µs", is_compared=False),
    Row("bulk1_cpu_s_per_gib", "proxies' CPU s/GiB, 1 stream", 3, aim=0.85),
    Row("bulk8_cpu_s_per_gib", "proxies' CPU s/GiB, 8 streams", 3, aim=0.85),
    Row("kept_cpu_s_per_10k", "proxies' CPU s/10,000 requests", 3, aim=0.8, http_aim=0.6, policies_aim=1.05),
    Row("rate_cpu_s_per_10k", "proxies' CPU s/10,000, at 1,000/s", 3, http_aim=0.6),
    Row("http2_cpu_s_per_10k", "proxies' CPU s/10,000, HTTP/2", 3, http_aim=0.6),
    Row("grpc_cpu_s_per_10k", "proxies' CPU s/10,000, gRPC's form", 3, http_aim=0.6),
    Row("new_cpu_s_per_10k", "proxies' CPU s/10,000 new connections", 3),
    Row("bulk1_machine_s_per_gib", "machine's CPU s/GiB, 1 stream", 3),
    Row("bulk8_machine_s_per_gib", "machine's CPU s/GiB, 8 streams", 3),
    Row("kept_machine_s_per_10k", "machine's CPU s/10,000 requests", 3),
    Row("rate_machine_s_per_10k", "machine's CPU s/10,000, at 1,000/s", 3),
    Row("http2_machine_s_per_10k", "machine's CPU s/10,000, HTTP/2", 3),
    Row("grpc_machine_s_per_10k", "machine's CPU s/10,000, gRPC's form", 3),
    Row("new_machine_s_per_10k", "machine's CPU s/10,000 new connections", 3),
    Row("rss_idle_client_mib", "memory idle, client's side, MiB", 1, aim=0.25),
    Row("rss_idle_server_mib", "memory idle, server's side, MiB", 1, aim=0.25),
    Row("rss_held_client_mib", "  with 1,000 idle connections, client's", 1),
    Row("rss_held_server_mib", "  with 1,000 idle connections, server's", 1),
    Row("rss_peak_client_mib", "  peak, client's", 1),
    Row("rss_peak_server_mib", "  peak, server's", 1),
)
# What direct's figure of the same round is taken off, and what is left.
OVER_DIRECT = {"rate_p50_us": "rate_added_p50_us", "rate_p99_us": "rate_added_p99_us"}


def render(samples, peers):
    """The table as text. `samples` are the run's, failed ones without metrics."""
    rounds = by_round(samples)
    columns = compared(peers)
    table = [["", *peers, *(title for title, _, _ in columns)]]
    for row in ROWS:
        values = {peer: [metrics[peer][row.key] for metrics in rounds if row.key in metrics.get(peer, {})]
                  for peer in peers}
        if any(values.values()):
            table.append([row.label, *(cell(row, values[peer]) for peer in peers),
                          *(ratio_cell(row, rounds, values, column) for column in columns)])
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    lines = ["  ".join(text.ljust(width) if column == 0 else text.rjust(width)
                       for column, (text, width) in enumerate(zip(line, widths))).rstrip() for line in table]
    lines.insert(1, "-" * len(max(lines, key=len)))
    return "\n".join(lines)


def by_round(samples):
    """For each round the metrics of its peers, with what each adds to direct's."""
    rounds = {}
    for sample in samples:
        rounds.setdefault(sample["round"], {})[sample["peer"]] = dict(sample.get("metrics", {}))
    for metrics in rounds.values():
        base = metrics.get(BASE, {})
        for peer, found in metrics.items():
            if peer != BASE:
                found |= {added: found[key] - base[key] for key, added in OVER_DIRECT.items()
                          if key in found and key in base}
    return list(rounds.values())


def compared(peers):
    """The columns with ratios: a title, a peer, and the peers that it is compared with. Without any of ours, Envoy's forms
    stand beside each other."""
    columns = [(f"{SUBJECT} / {reference}", SUBJECT, (reference,)) for reference in REFERENCES]
    columns.append((f"{HTTP_SUBJECT} / the better Envoy", HTTP_SUBJECT, HTTP_REFERENCES))
    columns.append((f"{POLICIES_SUBJECT} / {HTTP_SUBJECT}", POLICIES_SUBJECT, POLICIES_REFERENCES))
    among = [(title, subject, tuple(peer for peer in references if peer in peers))
             for title, subject, references in columns if subject in peers]
    found = [column for column in among if column[2]]
    if not found and set(REFERENCES) <= set(peers):
        found = [(f"{REFERENCES[1]} / {REFERENCES[0]}", REFERENCES[1], REFERENCES[:1])]
    return found


def cell(row, found):
    """The median, and the largest distance of a round from it in percent."""
    middle = median(found) if found else 0
    if not middle:
        return "-"
    spread = max(abs(value - middle) for value in found) / abs(middle)
    return f"{middle:,.{row.decimals}f} ±{spread:.0%}" if len(found) > 1 else f"{middle:,.{row.decimals}f}"


def ratio_cell(row, rounds, values, column):
    """The median of the rounds' own ratios to the better of the references, so that a machine that slows down between
    rounds does not count; with what the project asks of it, where it asks."""
    _, subject, references = column
    measured = [peer for peer in references if values[peer]]
    if not row.is_compared or not measured or not values[subject]:
        return "-"
    # Better over all rounds: the best of each would be the best of their noise.
    better = (max if row.more_is_better else min)(measured, key=lambda peer: median(values[peer]))
    pairs = [(metrics.get(subject, {}).get(row.key), metrics.get(better, {}).get(row.key)) for metrics in rounds]
    ratios = [ours / theirs for ours, theirs in pairs if ours is not None and theirs is not None and theirs > 0]
    if not ratios:
        return "-"
    ratio = median(ratios)
    text = f"{ratio:.2f}" + (f" of {better}" if len(references) > 1 else "")
    aim = {(SUBJECT, REFERENCES[:1]): row.aim, (HTTP_SUBJECT, HTTP_REFERENCES): row.http_aim,
           (POLICIES_SUBJECT, POLICIES_REFERENCES): row.policies_aim}.get((subject, references))
    if aim is None:
        return text
    met = ratio >= aim if row.more_is_better else ratio <= aim
    return f"{text} ({'≥' if row.more_is_better else '≤'}{aim:g} {'met' if met else 'MISSED'})"
