"""No test of the contract suite may reach the network."""

import socket

import pytest

from telos.lm.model import transformers


class NetworkUsed(BaseException):
    """Not an Exception, so that no library takes it for a lost connection and goes on."""


def refuse(*arguments: object, **options: object) -> None:
    raise NetworkUsed(f"a socket was used: {arguments[1:]}")


@pytest.fixture(scope="module", autouse=True)
def no_network():
    """Connecting and looking names up raise, in this suite only: other tests of the same process have servers."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex", "sendto"):
            patch.setattr(socket.socket, name, refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        yield


@pytest.fixture(scope="session", autouse=True)
def libraries():
    """Imported here, so that the first method's time does not count it."""
    transformers().AutoModelForSequenceClassification  # noqa: B018


@pytest.fixture
def network_error() -> type[BaseException]:
    """What a use of the network raises here."""
    return NetworkUsed
