"""The compiled load (src/load/module.cpp); `qtrunk.plan.bench.load` alone imports it."""

def run(
    *,
    host: str,
    port: int,
    certificate: str,
    private_key: str,
    ca_certificate: str,
    request: bytes,
    connections: int,
    seconds: float,
    warm_up_s: float,
    rate_hz: float,
) -> tuple[float, dict[str, int], int, dict[int, int]]: ...
