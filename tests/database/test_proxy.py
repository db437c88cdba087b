"""The proxy of the tests itself: a fault that does not happen would prove nothing."""

import http.client
import http.server
import threading

import pytest

from tests.servers.proxy import fault_proxy

BODY = b"x" * 3_000_000


class Echo(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_PUT(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def proxy():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with fault_proxy(server.server_port) as proxy:
            yield proxy
        server.shutdown()


@pytest.fixture
def client(proxy):
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=30)
    yield connection
    connection.close()


def put(client, body=BODY):
    client.request("PUT", "/x", body=body)
    answer = client.getresponse()
    return answer.status, answer.read()


def test_without_a_fault_all_bytes_pass(proxy, client):
    assert put(client) == put(client) == (200, BODY)
    assert proxy.connections == 1
    assert proxy.bytes_passed > 4 * len(BODY)


def test_an_http_status_is_answered_without_the_server_also_on_an_open_connection(proxy, client):
    assert put(client) == (200, BODY)
    passed = proxy.bytes_passed
    proxy.http_status = 503
    assert put(client) == (503, b"")
    assert put(client) == (503, b"")
    assert (proxy.http_answers, proxy.bytes_passed) == (2, passed)
    proxy.heal()
    assert put(client) == (200, BODY)


def test_connections_are_refused_and_reset(proxy, client):
    assert put(client) == (200, BODY)
    assert proxy.reset() == 1
    with pytest.raises(ConnectionError):
        put(client)
    proxy.is_refusing = True
    client.close()
    with pytest.raises(ConnectionError):
        put(client)
    proxy.heal()
    client.close()
    assert put(client) == (200, BODY)


def test_a_connection_is_reset_in_the_middle_of_a_body(proxy, client):
    proxy.reset_after_bytes = len(BODY) + len(BODY) // 2
    with pytest.raises((ConnectionError, http.client.IncompleteRead)):
        put(client)
    assert proxy.resets == 1


def test_a_hanging_connection_goes_on_when_the_fault_is_over(proxy, client):
    proxy.is_hanging = True
    healing = threading.Timer(0.5, proxy.heal)
    healing.start()
    assert put(client) == (200, BODY)
    healing.join()
