"""The certificates that Amazon SNS signs with: from SNS's own host in a topic's region, and from nowhere else."""

import asyncio
import re
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable

import httpx
from cryptography import x509

from services.bridge.senders.proof import UnavailableError

# The whole URL, so that no reading of its parts can differ: no port, user, query, fragment, escape or dot segment.
URL = re.compile(
    r"https://sns\.(?P<region>[a-z0-9-]{3,32})\.amazonaws\.com(?P<china>\.cn)?"
    r"(?:/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*/[A-Za-z0-9_-][A-Za-z0-9_.-]*\.pem",
    re.ASCII,
)
TOPIC = re.compile(r"arn:aws(?P<china>-cn)?:sns:(?P<region>[a-z0-9-]{3,32}):[0-9]{12}:[A-Za-z0-9_.-]{1,256}", re.ASCII)
URL_MAX = 512
SECONDS = 5.0
BYTES_MAX = 64 << 10
CACHED_MAX = 32
# SNS changes its certificate about once a year.
FETCHES_MAX = 8
FETCHES_SECONDS = 60.0

Fetch = Callable[[str], Awaitable[bytes]]


def is_allowed(url: str, topic: str) -> bool:
    """Say whether a certificate for TOPIC may be asked for at this URL: SNS's own host in the topic's region."""
    if len(url) > URL_MAX:
        return False
    address, name = URL.fullmatch(url), TOPIC.fullmatch(topic)
    if not address or not name:
        return False
    return address["region"] == name["region"] and bool(address["china"]) == bool(name["china"])


async def fetch(url: str, transport: httpx.AsyncBaseTransport | None = None) -> bytes:
    """Return what is at the URL, in at most 5 s, 64 KiB and one request. Raises httpx.HTTPError or ValueError."""
    async with (
        asyncio.timeout(SECONDS),
        # Neither proxies nor credentials of the environment: who is asked is decided here.
        httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=SECONDS, transport=transport) as client,
        client.stream("GET", url, headers={"Accept-Encoding": "identity"}) as answer,
    ):
        if answer.status_code != httpx.codes.OK:
            raise ValueError(f"the host answered {answer.status_code}")
        found = bytearray()
        async for chunk in answer.aiter_raw():
            found += chunk
            if len(found) > BYTES_MAX:
                raise ValueError(f"it is larger than {BYTES_MAX} bytes")
        return bytes(found)


class Certificates:
    """Certificates by URL, asked for once, one at a time and at most eight a minute."""

    def __init__(self, fetch: Fetch = fetch) -> None:
        self._fetch = fetch
        self._known: OrderedDict[str, x509.Certificate] = OrderedDict()
        self._tries: deque[float] = deque(maxlen=FETCHES_MAX)
        self._lock = asyncio.Lock()

    async def get(self, url: str) -> x509.Certificate:
        """Return the certificate at a URL that `is_allowed`. Raises UnavailableError."""
        async with self._lock:
            found = self._known.get(url)
            if found is None:
                found = await self._ask(url)
                self._known[url] = found
            self._known.move_to_end(url)
            if len(self._known) > CACHED_MAX:
                self._known.popitem(last=False)
            return found

    async def _ask(self, url: str) -> x509.Certificate:
        now = asyncio.get_running_loop().time()
        if len(self._tries) == FETCHES_MAX and now - self._tries[0] < FETCHES_SECONDS:
            raise UnavailableError("too many certificates were asked for in the last minute")
        self._tries.append(now)
        try:
            return x509.load_pem_x509_certificate(await self._fetch(url))
        except (httpx.HTTPError, ValueError, OSError, TimeoutError) as error:
            raise UnavailableError(f"the certificate at {url} cannot be had: {error!r:.200}") from error
