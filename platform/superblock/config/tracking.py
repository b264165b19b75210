"""Where results are recorded."""

from collections.abc import Iterator
from dataclasses import dataclass

from superblock.config.fields import knob


@dataclass
class TrackingConfig:
    """MLflow. Every value is first written to the run's own spool, so a lost server loses nothing."""

    store: str = knob(
        "sqlite",
        "sqlite: a file in this folder; postgresql: a database server; server: an MLflow server; none: the spool alone",
        choices=("sqlite", "postgresql", "server", "none"),
    )
    uri: str | None = knob(
        None,
        "tracking=server, postgresql: address of the server or database; tracking=sqlite: another database file's URI",
    )
    experiment: str = knob("superblock", "MLflow experiment")
    arm: str = knob("default", "tag that names the arm of a comparison")
    flush_seconds: float = knob(10.0, "seconds between two deliveries to MLflow", above=0, maximum=3600)
    timeout_seconds: float = knob(
        10.0, "longest wait for undelivered values at the end of a run", minimum=0, maximum=3600
    )
    system_metrics: bool = knob(True, "record processor, memory and GPU use")
    port: int = knob(5000, "port of `ui`", minimum=1, maximum=65535)

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.store == "server" and not self.uri:
            yield "uri", "tracking=server needs tracking.uri=http://host:port"
        if self.store == "postgresql" and not self.uri:
            yield "uri", "tracking=postgresql needs tracking.uri=postgresql://user@host:port/database"
