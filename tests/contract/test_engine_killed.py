"""kill -9 of an engine that answers many clients: each gets its answer or a clear invitation to try again."""

import asyncio
import threading
import time

import httpx2
import psutil
from tests.api_server import TINY, Server
from tests.raw_streams import LETTERS, Ask, gauges, hear

BODY = {"model": TINY, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 300, "temperature": 1}
CLIENTS = 12
BACK_SECONDS = 10.0


def engines(server: Server) -> list[psutil.Process]:
    """The engine processes of this server."""
    found = []
    for process in psutil.Process().children(recursive=True):
        words = process.cmdline()
        if "smedje.serving.worker" in words and any(word.startswith(str(server.ctx.home)) for word in words):
            found.append(process)
    return found


def test_every_client_is_answered_and_the_engine_comes_back(server: Server) -> None:
    """Under load each client has a 200 or a 503 with Retry-After and a code; ten seconds later all is as before."""
    short = {**BODY, "max_tokens": 2}
    assert server.post("/v1/chat/completions", short).status_code == 200
    (engine,) = engines(server)
    answers: list[httpx2.Response] = []
    busy = threading.Barrier(CLIENTS + 1)

    def ask() -> None:
        with server.http() as http:
            busy.wait()
            answers.append(http.post("/v1/chat/completions", json=BODY))

    threads = [threading.Thread(target=ask) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    busy.wait()
    begun = engine.cpu_times().user
    while engine.cpu_times().user < begun + 0.05:  # it works on them
        time.sleep(0.005)
    engine.kill()
    killed = time.monotonic()
    assert server.post("/v1/chat/completions", short).status_code == 200
    assert time.monotonic() - killed < BACK_SECONDS
    for thread in threads:
        thread.join()
    assert len(answers) == CLIENTS
    refused = [answer for answer in answers if answer.status_code != 200]
    assert refused, "the engine was killed before it had answered everyone"
    for answer in refused:
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        assert answer.json()["error"]["code"] == "engine_gone"
    assert len(engines(server)) == 1


def test_streams_end_with_an_error_that_says_to_try_again(server: Server) -> None:
    """Streams that were being answered by a killed engine end with the code engine_gone and without `[DONE]`."""
    server.post("/v1/chat/completions", {**BODY, "max_tokens": 2})
    body = {**BODY, "max_tokens": 450, "stream": True, "logprobs": True, "logit_bias": LETTERS}

    async def run() -> None:
        asking = [asyncio.create_task(hear(Ask(url=server.url, key=server.key, body=body))) for _ in range(6)]
        while gauges((await asyncio.to_thread(server.get, "/metrics")).text, "running") != [6]:
            await asyncio.sleep(0.005)
        for engine in engines(server):
            engine.kill()
        heard = await asyncio.gather(*asking)
        assert {(one.error, one.whole, one.retryable) for one in heard} == {("engine_gone", False, True)}

    asyncio.run(run())


def test_the_official_client_retries_by_itself(server: Server) -> None:
    """With its usual retries a client does not notice that an engine died between two of its requests."""
    client = server.client().with_options(max_retries=2)
    for _ in range(2):
        made = client.chat.completions.create(
            model=TINY, messages=[{"role": "user", "content": "hi"}], max_tokens=3, temperature=0
        )
        assert made.usage is not None
        for engine in engines(server):
            engine.kill()
