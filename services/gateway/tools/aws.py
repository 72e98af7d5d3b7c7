"""One AWS Auto Scaling API through boto3, which signs, writes and reads; what it sends goes through `Http`.

boto3 blocks, so a call runs in a thread. Its request leaves through the event loop's own client: with our deadline, our
largest answer and the gate before the first byte of an effect. It takes no credentials, region, profile, proxy or
address from the environment, from files or from the machine's role: only what the backends file says.
"""

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from functools import partial
from io import BytesIO
from typing import Any, Final

from services.gateway.backends import AwsAccount
from services.gateway.tools.asking import ANSWER_BYTES_MAX
from services.gateway.tools.http import Http, NoAnswerError, Reply

API: Final = "autoscaling"
# Calls at once for one account: one that hangs stands in nobody else's way.
THREADS: Final = 4
# How much longer than the exchange itself its thread waits for it, in seconds.
MARGIN: Final = 1.0

Send = Callable[[Any], Any]
_send: ContextVar[Send | None] = ContextVar("opsmesh_gateway_aws_send", default=None)


class AwsError(Exception):
    """AWS answered with an error: `code` is its word for it, `status` the HTTP status."""

    def __init__(self, code: str, text: str, status: int) -> None:
        self.code = code
        self.text = text
        self.status = status
        super().__init__(f"{code}: {text}")


class AutoScaling:
    """The API of one account and region."""

    def __init__(self, account: AwsAccount) -> None:
        self._account = account
        self._http = Http()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="aws")
        self._making = threading.Lock()
        self._made: Any = None

    async def close(self) -> None:
        """Close all connections; what still runs ends at its deadline."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        await self._http.close()

    async def call(self, operation: str, seconds: float, **parameters: Any) -> dict[str, Any]:
        """Call `describe_auto_scaling_groups` or another operation, once, within `seconds`.

        Raises AwsError, NotDeliveredError, NoAnswerError, or what the gate refuses with.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds

        async def exchange(request: Any) -> Reply:
            headers = {name: _text(value) for name, value in request.headers.items()}
            return await self._http.request(
                "POST",
                self._account.url,
                seconds=until - loop.time(),
                limit=ANSWER_BYTES_MAX,
                content=_bytes(request.body),
                headers=headers,
            )

        def send(request: Any) -> Reply:
            if request.method != "POST" or request.url.rstrip("/") != self._account.url:
                raise NoAnswerError("boto3 would have asked another address")
            # The thread's context goes along, and with it the gate.
            waiting = asyncio.run_coroutine_threadsafe(exchange(request), loop)
            return waiting.result(max(0.0, until - loop.time()) + MARGIN)

        context = copy_context()
        context.run(_send.set, send)
        answer: dict[str, Any] = await loop.run_in_executor(
            self._threads, context.run, partial(self._call, operation, parameters)
        )
        return answer

    def _call(self, operation: str, parameters: dict[str, Any]) -> dict[str, Any]:
        """Make one call, in a thread."""
        with self._making:
            client = self._made = self._made or _client(self._account)
        # Imported by `_client` already.
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415  costs 30 MB: only who has a group

        try:
            answer: dict[str, Any] = getattr(client, operation)(**parameters)
        except ClientError as error:
            told = error.response.get("Error", {})
            status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
            raise AwsError(str(told.get("Code")), str(told.get("Message")), status) from None
        except BotoCoreError as error:
            raise NoAnswerError(f"no answer to use: {type(error).__name__}") from error
        return answer


class _Body(BytesIO):
    """An answer as boto3 reads it."""

    def stream(self) -> Iterator[bytes]:
        """Yield all of it."""
        yield self.read()


def _client(account: AwsAccount) -> Any:
    """Return a boto3 client that knows nothing but this account."""
    import boto3.session  # noqa: PLC0415  a third of a second and 30 MB: only who has a group
    from botocore.awsrequest import AWSResponse  # noqa: PLC0415  the same
    from botocore.config import Config  # noqa: PLC0415  the same
    from botocore.session import Session  # noqa: PLC0415  the same

    def leave(request: Any, **_: Any) -> Any:
        send = _send.get()
        if send is None:
            raise NoAnswerError("boto3 asked by itself")
        reply = send(request)
        if reply.truncated:
            raise NoAnswerError("it answered with too much")
        return AWSResponse(request.url, reply.status, {}, _Body(reply.body))

    nothing = (None, None, None, None)
    empty = (None, None, os.devnull, None)
    core = Session({"profile": nothing, "config_file": empty, "credentials_file": empty})
    client = boto3.session.Session(botocore_session=core).client(
        API,
        region_name=account.region,
        endpoint_url=account.url,
        aws_access_key_id=account.access_key_id,
        aws_secret_access_key=account.secret_access_key,
        aws_session_token=account.session_token or None,
        config=Config(
            # What may be tried again is for the caller to say.
            retries={"total_max_attempts": 1, "mode": "standard"},
            # "auto" would ask the machine's metadata service.
            defaults_mode="legacy",
            ignore_configured_endpoint_urls=True,
            tcp_keepalive=False,
        ),
    )
    client.meta.events.register(f"before-send.{client.meta.service_model.service_id.hyphenize()}", leave)
    return client


def _text(value: bytes | str) -> str:
    """Return a header's value as text."""
    return value.decode() if isinstance(value, bytes) else str(value)


def _bytes(body: bytes | str | None) -> bytes:
    """Return a body as bytes."""
    return body.encode() if isinstance(body, str) else body or b""
