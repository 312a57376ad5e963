"""The compiled loads (src/load); `qtrunk.plan.bench.load` alone imports them."""

class Place:
    def __init__(self, *, host: str, port: int, certificate: str, private_key: str, ca_certificate: str) -> None: ...

def run(
    *, place: Place, request: bytes, connections: int, seconds: float, warm_up_s: float, rate_hz: float
) -> tuple[float, dict[str, int], int, dict[int, int]]: ...
def round_trips(
    *, initiator: Place, target: Place, get: bytes, collect: bytes, connections: int, seconds: float
) -> tuple[int, float]: ...
