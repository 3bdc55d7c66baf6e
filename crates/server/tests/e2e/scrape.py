"""Reading the Prometheus text of `/metrics`."""

from prometheus_client.parser import text_string_to_metric_families

# The seven critical metrics and the families that expose them.
CRITICAL = {
    "mcpscope_registry_operations_total": ("registry_operations_per_second", "counter"),
    "mcpscope_session_creation_seconds": ("session_creation_latency_ms", "histogram"),
    "mcpscope_transport_connections": ("transport_connection_count", "gauge"),
    "mcpscope_tool_call_duration_seconds": ("tool_call_duration_ms", "histogram"),
    "mcpscope_component_operations_total": ("error_rates_by_component", "counter"),
    "mcpscope_component_errors_total": ("error_rates_by_component", "counter"),
    "mcpscope_active_sessions": ("active_sessions_count", "gauge"),
    "mcpscope_message_queue_depth": ("message_queue_depth", "gauge"),
}


class Metrics:
    """One scrape."""

    def __init__(self, text: str):
        self.text = text
        self.samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    def matching(self, name: str, **labels: str):
        return [s for s in self.samples if s.name == name and labels.items() <= s.labels.items()]

    def sum(self, name: str, **labels: str) -> float:
        """The sum over the series of `name` that have these labels; 0 when there is none."""
        return sum(sample.value for sample in self.matching(name, **labels))

    def by(self, label: str, name: str, **labels: str) -> dict[str, float]:
        """The non-zero sums by the values of one label."""
        sums: dict[str, float] = {}
        for sample in self.matching(name, **labels):
            value = sample.labels[label]
            sums[value] = sums.get(value, 0) + sample.value
        return {value: total for value, total in sums.items() if total}

    def tool_calls(self, **labels: str) -> dict[tuple[str, str], float]:
        """Number of calls by (tool, outcome)."""
        calls: dict[tuple[str, str], float] = {}
        for sample in self.matching("mcpscope_tool_call_duration_seconds_count", **labels):
            key = (sample.labels["tool"], sample.labels["outcome"])
            calls[key] = calls.get(key, 0) + sample.value
        return {key: total for key, total in calls.items() if total}

    def header(self, kind: str, family: str) -> str:
        """The text of the HELP or TYPE line of a family; it must be there exactly once."""
        start = f"# {kind} {family} "
        (line,) = [line for line in self.text.splitlines() if line.startswith(start)]
        return line.removeprefix(start)
