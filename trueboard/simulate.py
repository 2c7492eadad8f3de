"""`trueboard simulate`: seeded traffic over HTTP, and an account of every action of it.

It ends when every action the door confirmed has its verdict. Exit code 0: none lost, none invented;
1: some were; 2: it could not send, or could not look.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from core.errors import TrueboardError, Unavailable
from service.settings import data_directory
from trueboard import options
from trueboard.client import MOST_ACTIONS, ByReceipt, Client, InLedger, NoAnswer, Tokens, verdicts
from trueboard.endpoints import Endpoints
from trueboard.output import telling
from trueboard.simulation import planning, sending
from trueboard.simulation.account import Account
from trueboard.simulation.planning import Traffic
from trueboard.simulation.sending import Run, Sender

CLIENT: Final = "simulate"

WAIT_S: Final = 60.0
"""How long no new verdict may come before what is still open counts as lost."""

SETTLE_S: Final = 1.0
"""How long after the last verdict the ledger is looked at once more, for what should not be there."""

COULD_NOT: Final = 2

Watch = Callable[[str, Account], None]


@dataclass(slots=True)
class Result:
    """A run's account, and what only a person wants to know of it."""

    account: Account
    source: str
    sent_s: float
    latencies_s: list[float]
    unanswered: int
    stopped: bool


@click.command()
@options.data
@click.option("--seed", type=click.IntRange(min=0), help="The same seed, the same plan (default: any).")
@click.option("--users", type=click.IntRange(1, 1_000_000), default=1_000, show_default=True)
@click.option(
    "--rate",
    "rate_per_s",
    type=click.FloatRange(min=0, min_open=True),
    default=200.0,
    show_default=True,
    help="Actions a second, on average; bursts are four times that.",
)
@click.option(
    "--duration",
    "duration_s",
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds to send for (default 10, without --actions).",
)
@click.option("--actions", type=click.IntRange(min=1), help="How many actions at the most.")
@click.option(
    "--duplicates",
    type=click.FloatRange(0, 1),
    default=0.05,
    show_default=True,
    help="Share of actions sent twice, half of them at once.",
)
@click.option(
    "--cheaters",
    type=click.FloatRange(0, 1),
    default=0.01,
    show_default=True,
    help="Share of users who go beyond limits and bounds.",
)
@click.option(
    "--late",
    type=click.FloatRange(0, 1),
    default=0.02,
    show_default=True,
    help="Share of actions that occurred minutes to hours before they are sent.",
)
@click.option(
    "--batch",
    type=click.IntRange(1, MOST_ACTIONS),
    default=10,
    show_default=True,
    help="Actions in a request at the most; 1: one by one.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(1, 512),
    default=16,
    show_default=True,
    help="Requests under way at the most.",
)
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(min=0),
    default=WAIT_S,
    show_default=True,
    metavar="SECONDS",
    help="How long no new verdict may come before what is open counts as lost.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of lines.")
def command(
    data: Path | None, as_json: bool, batch: int, concurrency: int, wait_s: float, **asked: Any
) -> None:
    """Send seeded traffic and account for every action of it.

    Few users do much and many little; traffic comes in bursts; some send twice, some late, some
    cheat. Types and points are those of the shipped catalogue. Most goes by one trusted token, some
    by tokens of five users' own. What finds no answer is sent again, with the same id and body.

    Afterwards every action that the door confirmed must have one verdict (else it is lost), and
    nothing else of this run may have one (else it is invented). Ctrl-C ends the sending; the account
    is made all the same. The exit code is 0 if none is lost or invented, 1 if some are, 2 if the
    stack could not be reached.
    """
    if asked["seed"] is None:
        asked["seed"] = secrets.randbelow(1 << 31)
    if asked["duration_s"] is None and asked["actions"] is None:
        asked["duration_s"] = 10.0
    traffic = Traffic(**asked)
    directory = data_directory(os.environ, data)
    try:
        endpoints = Endpoints.read(directory)
        with _watching(traffic) as watch:
            result = asyncio.run(
                simulate(
                    directory,
                    endpoints,
                    traffic,
                    batch=batch,
                    concurrency=concurrency,
                    wait_s=wait_s,
                    watch=watch,
                )
            )
    except TrueboardError as error:
        click.echo(f"trueboard simulate: {' '.join(str(error).split())}", err=True)
        sys.exit(COULD_NOT)
    except KeyboardInterrupt:
        click.echo("trueboard simulate: interrupted before the account was made", err=True)
        sys.exit(130)
    body = result.account.body()
    with telling("simulate", could_not=COULD_NOT):
        if as_json:
            click.echo(json.dumps(body))
        else:
            _tell(result, body)
    sys.exit(1 if body["lost"] or body["invented"] else 0)


async def simulate(
    data: Path,
    endpoints: Endpoints,
    traffic: Traffic,
    *,
    batch: int = 10,
    concurrency: int = 16,
    wait_s: float = WAIT_S,
    watch: Watch | None = None,
) -> Result:
    """Send the traffic, wait for the verdicts, and account for it.

    The first SIGINT ends the sending, the second everything.

    Raises:
        Unavailable: the door does not answer at the start, takes no token, or verdicts cannot be looked up.
    """
    trusted = Tokens(data, endpoints, user=CLIENT, scopes=sending.trusted_scopes())
    run = Run(traffic.seed, secrets.token_hex(5), time.time_ns() // 1000)
    own = {
        user: Tokens(data, endpoints, user=run.user_id(user), scopes=sending.own_scopes())
        for user in sending.own_users(traffic)
    }
    account = Account(traffic.seed)
    async with Client(endpoints, connections_most=concurrency) as client:
        await _answers(client)
        judged = await verdicts(endpoints, client, trusted)
        sender = Sender(client, trusted, own, run, account, batch)
        telling = asyncio.create_task(_tell_now_and_then(account, sender, watch)) if watch else None
        begun_s = time.monotonic()
        try:
            with _stopping_on_interrupt(sender.stopping):
                await sender.send(planning.plan(traffic), concurrency)
            if set(account.answers) == {401}:
                raise Unavailable(
                    "the door takes no token of this client: another issuer, other keys or a shorter life"
                )
            sent_s = time.monotonic() - begun_s
            await _account_for(account, run, judged, wait_s)
        finally:
            if telling is not None:
                telling.cancel()
            await judged.close()
    return Result(
        account, judged.source, sent_s, sender.latencies_s, sender.unanswered, sender.stopping.is_set()
    )


async def _answers(client: Client) -> None:
    """Whether somebody is there at all; later silence is a fault to be outlasted."""
    try:
        await client.get("/v1/boards/main/standings", query={"limit": "1"})
    except NoAnswer as error:
        raise Unavailable(f"the door does not answer: {error}") from error


@contextmanager
def _stopping_on_interrupt(stopping: asyncio.Event) -> Iterator[None]:
    loop = asyncio.get_running_loop()

    def interrupted() -> None:
        stopping.set()
        loop.remove_signal_handler(signal.SIGINT)

    loop.add_signal_handler(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)


async def _account_for(account: Account, run: Run, judged: InLedger | ByReceipt, wait_s: float) -> None:
    """Look the verdicts up until every confirmed action has one, or no new one comes for `wait_s`."""
    least, moved_s, rest_s = None, time.monotonic(), 0.05
    settled = False
    while True:
        begun_s = time.monotonic()
        try:
            await _look_up(account, run, judged)
            open_ = account.confirmed_waiting()
        except Unavailable:
            if time.monotonic() - moved_s > wait_s:
                raise
            open_ = least if least is not None else account.sent
        else:
            if not open_ and settled:
                return
            settled = not open_
            if least is None or open_ < least:
                least, moved_s = open_, time.monotonic()
            elif open_ and time.monotonic() - moved_s > wait_s:
                return
        # A look at a long run is itself work for the server: rest as long as it took, at least.
        rest_s = min(2.0, max(rest_s * 1.5, time.monotonic() - begun_s))
        await asyncio.sleep(SETTLE_S if settled else rest_s)


async def _look_up(account: Account, run: Run, judged: InLedger | ByReceipt) -> None:
    if isinstance(judged, InLedger):
        account.look_again()
        async for user_id, action_id, verdict in judged.between(*run.between):
            number = run.number(action_id)
            user = account.user(number)
            account.judged(number, user if user_id == run.user_id(user) else -1, verdict)
        return
    waiting = account.waiting()
    while page := list(islice(waiting, MOST_ACTIONS)):
        found = await judged.of([run.key(number, user) for number, user in page])
        for number, user in page:
            seen = found.get(run.key(number, user))
            if seen is not None:
                account.judged(number, user, seen.verdict)


async def _tell_now_and_then(account: Account, sender: Sender, watch: Watch) -> None:
    while True:
        watch("stopping" if sender.stopping.is_set() else "sending", account)
        await asyncio.sleep(0.1)


@contextmanager
def _watching(traffic: Traffic) -> Iterator[Watch | None]:
    """A bar of what was sent, on a terminal's stderr."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    expected = min(
        traffic.actions if traffic.actions is not None else sys.maxsize,
        round(traffic.rate_per_s * traffic.duration_s) if traffic.duration_s is not None else sys.maxsize,
    )
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console, transient=True
    ) as shown:
        task = shown.add_task("sending", total=expected)

        def watch(doing: str, account: Account) -> None:
            told = f"{doing}: {account.sent:,} sent, {sum(account.verdicts.values()):,} judged"
            shown.update(task, description=told, completed=account.sent)

        yield watch


def _tell(result: Result, body: dict[str, Any]) -> None:
    console = Console(highlight=False)
    rate = f"{body['sent'] / result.sent_s:,.0f}/s" if result.sent_s else ""
    stopped = "[yellow]stopped early:[/] " if result.stopped else ""
    console.print(
        f"{stopped}seed {body['seed']}: {body['sent']:,} actions sent in {result.sent_s:.1f} s ({rate}),"
        f" {body['duplicates']:,} of them again",
        soft_wrap=True,
    )
    answers = ", ".join(f"{status} × {count:,}" for status, count in body["answers"].items())
    lost_answers = f", none × {result.unanswered:,}" if result.unanswered else ""
    console.print(f"answers   {answers or 'none'}{lost_answers}", soft_wrap=True)
    if result.latencies_s:
        ordered = sorted(result.latencies_s)
        half, most = (ordered[int(len(ordered) * part)] * 1000 for part in (0.5, 0.99))
        console.print(f"latency   {half:.1f} ms in the middle, {most:.1f} ms at 99 %", soft_wrap=True)
    shown = ", ".join(f"{count:,} {name}" for name, count in body["verdicts"].items())
    console.print(f"verdicts  {shown}  [dim](by {result.source})[/]", soft_wrap=True)
    mark = "[red]✗[/]" if body["lost"] or body["invented"] else "[green]✓[/]"
    console.print(f"{mark} {body['lost']:,} lost, {body['invented']:,} invented", soft_wrap=True)
