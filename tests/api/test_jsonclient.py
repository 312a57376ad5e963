"""Questions over connections that are kept: one handshake for many, and a new one when the service has closed."""

import select

import pytest
from api_kit import RunningServer

from qtrunk.api.https import Limits, Request, Response, error
from qtrunk.api.jsonclient import Service
from qtrunk.api.tls import client_context
from qtrunk.base.errors import LabError, RequestRefused


async def echo(request: Request) -> Response:
    if request.segments == ("unknown",):
        return error(404, "unknown path")
    return Response(200, b'"' + request.method.encode() + b'"')


@pytest.fixture
def context(alice):
    return client_context(alice.certificate, alice.private_key, alice.ca_certificate)


@pytest.mark.parametrize("keeps", [True, False])
def test_many_questions_take_one_connection_where_it_is_kept(kme, context, keeps):
    with RunningServer(echo, kme) as running:
        service = Service("localhost", running.port, context, keeps=keeps)
        for _ in range(3):
            assert service.ask("GET", "/a") == b'"GET"'
            assert service.ask("POST", "/a", {"b": 1}) == b'"POST"'
            with pytest.raises(RequestRefused, match="unknown path"):
                service.ask("GET", "/unknown")
        assert len(service._idle) == keeps, "the same connection again and again, or none"
        service.close()
        assert not service._idle


def test_a_connection_that_the_service_has_closed_is_dialled_anew(kme, context):
    with RunningServer(echo, kme, limits=Limits(idle_s=0.1)) as running:
        service = Service("localhost", running.port, context, keeps=True)
        assert service.ask("GET", "/a") == b'"GET"'
        (kept,) = service._idle
        poll = select.poll()
        poll.register(kept.sock, select.POLLIN)
        assert poll.poll(10_000), "the server closes what is idle"
        assert service.ask("GET", "/a") == b'"GET"'
        assert service._idle != [kept]
    with pytest.raises(LabError, match="does not answer"):
        service.ask("GET", "/a")
