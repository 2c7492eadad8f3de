"""`trueboard replay`: put a history that exists on the board, as that of a git repository.

Every commit becomes one action of its author, through the public door. A commit's hash is its
action id, so whatever was interrupted or is run twice counts once. The command ends when every
commit has its verdict.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from core import scopes, words
from core.errors import TrueboardError, Unavailable
from core.times import LOWEST_US, US, format_us
from service.settings import data_directory
from trueboard import options
from trueboard.client import (
    MOST_ACTIONS,
    Answer,
    ByReceipt,
    Client,
    InLedger,
    Key,
    NoAnswer,
    Tokens,
    Verdict,
    first_of,
    pause_s,
    verdicts,
)
from trueboard.endpoints import Endpoints
from trueboard.output import telling

TYPE: Final = "commit"
CLIENT: Final = "replay"

LANES: Final = 4
"""Batches under way at once. An author keeps to one lane, so names arrive in the order they were taken."""

PATIENCE_S: Final = 120.0
"""How long nothing may go forward before the command gives up."""

SEND_AGAIN_S: Final = 40.0
"""A commit without a verdict for so long is sent again: by then the door publishes it once more."""

MOST_OPEN: Final = 20_000
"""Commits that may wait for their verdicts while others are sent."""

COULD_NOT: Final = 2

_AT_ONCE = 2_000
_REASONS_SHOWN = 5
_FIELDS = 4
_FORMAT = "%H%x00%ae%x00%an%x00%ct"


@dataclass(frozen=True, slots=True)
class Commit:
    """One commit: `committed_us` is None where git names no instant, `username` where nothing is left."""

    hash: str
    user_id: str
    username: str | None
    committed_us: int | None

    @property
    def key(self) -> Key:
        return self.user_id, self.hash

    def action(self, now_us: int) -> dict[str, Any]:
        """As `POST /v1/actions/batch` takes it.

        Of a commit dated later than now, or not at all, no instant is sent: the door takes its
        own now, and the same commit sent again is the same action.
        """
        action: dict[str, Any] = {"action_id": self.hash, "type": TYPE, "user_id": self.user_id}
        if self.username is not None:
            action["username"] = self.username
        if self.committed_us is not None and self.committed_us <= now_us:
            action["occurred_at"] = format_us(max(LOWEST_US, self.committed_us))
        return action


def commit(hash_: bytes, email: bytes, name: bytes, committed_s: bytes) -> Commit:
    """A commit from git's words; the user id is that of the e-mail, which itself goes nowhere."""
    user_id = hashlib.sha256(email.strip().lower()).hexdigest()[:16]
    username = words.clean_username(name.decode(errors="replace"))
    try:
        committed_us = int(committed_s) * US
    except ValueError:
        committed_us = None
    return Commit(hash_.decode(), user_id, username, committed_us)


def read(chunks: Iterable[bytes]) -> Iterator[Commit]:
    """The commits in what git wrote, however it was cut: four fields each, every one ended by NUL."""
    rest = b""
    fields: list[bytes] = []
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\0")
        fields += whole
        usable = len(fields) - len(fields) % _FIELDS
        for begin in range(0, usable, _FIELDS):
            yield commit(*fields[begin : begin + _FIELDS])
        del fields[:usable]
    if rest or fields:
        raise Unavailable("git ended in the middle of a commit")


class Repository:
    """A git repository, read by git itself, undisturbed by the reader's own configuration."""

    def __init__(self, path: Path, since: str | None = None) -> None:
        self._path = path
        self._limits = ["--no-merges", *([] if since is None else [f"--since={since}"])]

    def count(self) -> int:
        """How many commits there will be.

        Raises:
            Unavailable: no repository, no commit in it, or no git; in git's own words.
        """
        told = self._start("rev-list", "--count", *self._limits, "HEAD", "--")
        output, errors = told.communicate()
        if told.returncode:
            raise Unavailable(f"git cannot read {self._path}: {_first_line(errors)}")
        return int(output)

    def commits(self) -> Iterator[Commit]:
        """Every commit but merges, parents first. Raises Unavailable as `count`."""
        git = self._start(
            "log",
            "HEAD",
            *self._limits,
            "--topo-order",
            "--reverse",
            "--no-mailmap",
            "--no-show-signature",
            "--no-patch",
            "--no-color",
            "-z",
            f"--format=tformat:{_FORMAT}",
            # What stands before it are revisions, also beside a file of that name.
            "--",
        )
        assert git.stdout is not None
        descriptor = git.stdout.fileno()
        try:
            yield from read(iter(lambda: os.read(descriptor, 1 << 16), b""))
            _, errors = git.communicate()
            if git.returncode:
                raise Unavailable(f"git cannot read {self._path}: {_first_line(errors)}")
        finally:
            git.kill()
            git.communicate()

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        # A repository is the one named, whatever a hook or another git around this one says.
        env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        try:
            return subprocess.Popen(
                ["git", "-C", str(self._path), "-c", "i18n.logOutputEncoding=UTF-8", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=env | {"LC_ALL": "C"},
            )
        except OSError as error:
            raise Unavailable(f"git does not run: {error.strerror}") from error


def _first_line(errors: bytes) -> str:
    lines = errors.decode(errors="replace").strip().splitlines()
    if lines and lines[0].endswith("bad revision 'HEAD'"):
        return "there is no commit yet"
    return lines[0] if lines else "it says nothing"


@dataclass(slots=True)
class Sent:
    """A commit the door has confirmed. `received_at` is None where it said that the id is taken."""

    commit: Commit
    received_at: str | None
    replayed: bool
    attempts: int
    at_s: float


@dataclass(slots=True)
class Tally:
    """What has become of the commits so far; `reasons` are of the first refused ones."""

    commits: int = 0
    authors: set[str] = field(default_factory=set)
    sent: int = 0
    judged: int = 0
    replayed: int = 0
    refused: int = 0
    held: int = 0
    reasons: list[str] = field(default_factory=list)
    position: tuple[str, int] = ("", 0)

    def refuse(self, hash_: str, why: str) -> None:
        self.refused += 1
        if len(self.reasons) < _REASONS_SHOWN:
            self.reasons.append(f"{hash_[:12]}: {why}")

    def body(self) -> dict[str, Any]:
        """As `docs/interfaces.md` §8 writes it."""
        return {
            "commits": self.commits,
            "authors": len(self.authors),
            "sent": self.sent,
            "replayed": self.replayed,
            "refused": self.refused,
            "epoch": self.position[0],
            "revision": self.position[1],
        }


class Replay:
    """Sends commits and sees each of them judged."""

    def __init__(self, client: Client, tokens: Tokens, judged: InLedger | ByReceipt) -> None:
        self.tally = Tally()
        self._client, self._tokens, self._verdicts = client, tokens, judged
        self._lanes: list[asyncio.Queue[Commit | None]] = [asyncio.Queue(MOST_ACTIONS) for _ in range(LANES)]
        self._open: dict[Key, Sent] = {}
        self._moved_s = time.monotonic()
        self._all_sent = False
        self._room = asyncio.Event()
        self._room.set()

    async def run(self, commits: Iterator[Commit]) -> None:
        """Send them all and return when every one has its verdict, or was refused.

        Raises:
            Unavailable: nothing went forward for `PATIENCE_S`, or git failed.
        """
        async with asyncio.TaskGroup() as group:
            seeing = group.create_task(self._see_judged())
            sending = [group.create_task(self._send_lane(lane)) for lane in self._lanes]
            await self._read(commits)
            for lane in self._lanes:
                await lane.put(None)
            await asyncio.gather(*sending)
            self._all_sent = True
            await seeing

    async def _read(self, commits: Iterator[Commit]) -> None:
        while page := await asyncio.to_thread(lambda: list(islice(commits, MOST_ACTIONS))):
            for one in page:
                self.tally.commits += 1
                self.tally.authors.add(one.user_id)
                await self._lanes[int(one.user_id, 16) % LANES].put(one)

    async def _send_lane(self, lane: asyncio.Queue[Commit | None]) -> None:
        ended = False
        while not ended:
            batch: list[Commit] = []
            while len(batch) < MOST_ACTIONS:
                one = await lane.get()
                if one is None:
                    ended = True
                    break
                batch.append(one)
            if batch:
                await self._send(batch)
            await self._room.wait()

    async def _send(self, batch: Sequence[Commit], *, again: bool = False) -> None:
        """Send a batch until each commit of it is confirmed or refused."""
        left, attempt = list(batch), 0
        while left:
            answer = await self._post(left)
            attempt += 1
            if answer is not None and answer.status == 200:
                left, waiting = self._take(left, answer.body["results"], attempt, again), answer
                if not left:
                    return
            elif answer is None or answer.passes:
                waiting = answer or Answer(503, None)
            else:
                raise Unavailable(f"the door refuses the batch: {answer.detail}")
            self._lose_patience("the door takes nothing", waiting.detail)
            await asyncio.sleep(pause_s(attempt, waiting))

    async def _post(self, batch: Sequence[Commit]) -> Answer | None:
        now_us = time.time_ns() // 1000
        body = msgspec.json.encode({"actions": [one.action(now_us) for one in batch]})
        try:
            return await self._client.post("/v1/actions/batch", body, token=self._tokens.current())
        except NoAnswer:
            return None

    def _take(
        self, batch: Sequence[Commit], results: Sequence[dict[str, Any]], attempt: int, again: bool
    ) -> list[Commit]:
        """Note what became of each; those to be sent again come back."""
        left = []
        now_s = time.monotonic()
        for one, result in zip(batch, results, strict=True):
            if result["status"] == 202:
                receipt = result["receipt"]
                self._confirm(Sent(one, receipt["received_at"], receipt["replayed"], attempt, now_s), again)
            elif result["status"] == 409:
                # Sent before with another instant, as one that then lay in the future: that one counts.
                self._confirm(Sent(one, None, True, attempt, now_s), again)
            elif Answer(result["status"], None).passes:
                left.append(one)
            elif again:
                self._open.pop(one.key, None)
                self.tally.refuse(one.hash, Answer(result["status"], result["error"]).detail)
            else:
                self.tally.refuse(one.hash, Answer(result["status"], result["error"]).detail)
        if len(left) < len(batch):
            self._moved_s = now_s
        return left

    def _confirm(self, sent: Sent, again: bool) -> None:
        known = self._open.get(sent.commit.key)
        if not again:
            self.tally.sent += 1
            self._open[sent.commit.key] = sent
            if len(self._open) > MOST_OPEN:
                self._room.clear()
        elif known is not None:
            known.at_s, known.attempts = sent.at_s, known.attempts + 1

    async def _see_judged(self) -> None:
        """Ask for verdicts, those that were sent first before the others, until none is open."""
        rest_s = 0.02
        while self._open or not self._all_sent:
            wanted = list(islice(self._open, _AT_ONCE))
            try:
                found = await self._verdicts.of(wanted) if wanted else {}
            except Unavailable as error:
                self._lose_patience("no verdicts can be read", error.detail)
                found = {}
            for key, verdict in found.items():
                self._judge(self._open.pop(key), verdict)
            if len(self._open) <= MOST_OPEN:
                self._room.set()
            if found:
                self._moved_s, rest_s = time.monotonic(), 0.02
                continue
            if self._open:
                self._lose_patience(f"{len(self._open)} commits have no verdict", "the stream does not judge")
                await self._send_late()
            await asyncio.sleep(rest_s)
            rest_s = min(1.0, rest_s * 1.5)

    async def _send_late(self) -> None:
        late_s = time.monotonic() - SEND_AGAIN_S
        late = [sent.commit for sent in islice(self._open.values(), MOST_ACTIONS) if sent.at_s < late_s]
        if late:
            await self._send(late, again=True)

    def _judge(self, sent: Sent, verdict: Verdict) -> None:
        tally = self.tally
        tally.judged += 1
        tally.position = max(tally.position, (verdict.epoch, verdict.revision))
        if verdict.type != TYPE:
            tally.refuse(sent.commit.hash, f"the id is taken by an action of type {verdict.type}")
        elif verdict.verdict == "rejected":
            tally.refuse(sent.commit.hash, f"rejected: {verdict.code}")
        else:
            tally.held += verdict.verdict == "held"
            # Without a marker the door does not know a repeat; the instant that counts tells it.
            unlike = sent.attempts == 1 and sent.received_at != format_us(verdict.received_us)
            tally.replayed += sent.replayed or unlike

    def _lose_patience(self, what: str, why: str) -> None:
        if time.monotonic() - self._moved_s > PATIENCE_S:
            raise Unavailable(
                f"{what} for {PATIENCE_S:.0f} s ({why}); run it again later, what was sent counts once"
            )


async def replay(
    data: Path, endpoints: Endpoints, commits: Iterator[Commit], watch: Any = None
) -> tuple[Tally, list[dict[str, Any]]]:
    """Replay these commits; what became of them, and the ten leading entries afterwards.

    `watch` is called with the tally now and then.

    Raises:
        Unavailable: the stack does not answer, or nothing went forward for `PATIENCE_S`.
    """
    tokens = Tokens(
        data,
        endpoints,
        user=CLIENT,
        scopes=(scopes.ACTIONS_WRITE, scopes.ACTIONS_WRITE_ANY, scopes.ACTIONS_BACKFILL),
    )
    async with Client(endpoints) as client:
        await _standings(client, None)
        judged = await verdicts(endpoints, client, tokens)
        work = Replay(client, tokens, judged)
        telling = asyncio.create_task(_tell_now_and_then(work.tally, watch)) if watch else None
        try:
            await work.run(commits)
        except BaseExceptionGroup as group:
            # Of the lanes that fail for one cause, one tells it.
            raise first_of(group) from group
        finally:
            if telling is not None:
                telling.cancel()
            await judged.close()
        shown = await _standings(client, work.tally.position if work.tally.judged else None)
        if not work.tally.judged:
            work.tally.position = (shown["epoch"], shown["revision"])
        return work.tally, shown["entries"]


async def _tell_now_and_then(tally: Tally, watch: Any) -> None:
    while True:
        watch(tally)
        await asyncio.sleep(0.1)


async def _standings(client: Client, at_least: tuple[str, int] | None) -> dict[str, Any]:
    """The ten leading entries of the default board, after this position."""
    query = {"limit": "10"}
    if at_least is not None:
        query["at_least"] = f"{at_least[0]}-{at_least[1]}"
    until_s = time.monotonic() + 10.0
    for attempt in range(100):
        answer: Answer | None = None
        try:
            answer = await client.get(f"/v1/boards/{words.MAIN_BOARD}/standings", query=query)
        except NoAnswer as error:
            why = str(error)
        else:
            if answer.status == 200:
                body: dict[str, Any] = answer.body
                return body
            why = answer.detail
        if time.monotonic() > until_s:
            raise Unavailable(f"the door does not answer: {why}")
        await asyncio.sleep(pause_s(attempt, answer))
    raise Unavailable("the door does not answer")


@click.group()
def command() -> None:
    """Replay a history that exists.

    \b
    trueboard replay git PATH    one action for every commit of a git repository
    """


@command.command("git")
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@options.data
@click.option("--since", metavar="DATE", help="Only commits later than this, in any of git's spellings.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def git(path: Path, data: Path | None, since: str | None, as_json: bool) -> None:
    """Put every commit of the repository at PATH on the board, for its author.

    Merges are left out. An author is the e-mail, of which only a hash leaves this machine's git; a
    commit's hash is its action id, so the same history counts once however often it is replayed,
    and an interrupted replay is simply run again.

    The exit code is 0 when every commit has its verdict, 1 if some were refused (the first reasons
    are shown), 2 if the repository or the stack could not be read.
    """
    directory = data_directory(os.environ, data)
    try:
        endpoints = Endpoints.read(directory)
        repository = Repository(path, since)
        with _watching(repository.count()) as watch:
            tally, leading = asyncio.run(replay(directory, endpoints, repository.commits(), watch))
    except TrueboardError as error:
        click.echo(f"trueboard replay: {' '.join(str(error).split())}", err=True)
        sys.exit(COULD_NOT)
    except KeyboardInterrupt:
        click.echo("trueboard replay: interrupted; run it again, what was sent counts once", err=True)
        sys.exit(130)
    with telling("replay", could_not=COULD_NOT):
        if as_json:
            click.echo(json.dumps(tally.body()))
        else:
            _tell(tally, leading, endpoints)
    for reason in tally.reasons:
        click.echo(f"refused {reason}", err=True)
    sys.exit(1 if tally.refused else 0)


@contextmanager
def _watching(total: int) -> Iterator[Any]:
    """Bars of what was sent and judged, on a terminal's stderr."""
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description:<7}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as shown:
        sent, judged = shown.add_task("sent", total=total), shown.add_task("judged", total=total)

        def watch(tally: Tally) -> None:
            shown.update(sent, completed=tally.sent)
            shown.update(judged, completed=tally.judged)

        yield watch


def _tell(tally: Tally, leading: Sequence[dict[str, Any]], endpoints: Endpoints) -> None:
    console = Console(highlight=False)
    console.print(
        f"{tally.commits:,} commits of {len(tally.authors):,} authors: {tally.sent:,} sent,"
        f" {tally.replayed:,} of them known before, {tally.refused:,} refused"
        + (f", {tally.held:,} held" if tally.held else ""),
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False)
    for title, side in (("rank", "right"), ("", "left"), ("score", "right")):
        table.add_column(title, justify=side)  # type: ignore[arg-type]
    for entry in leading:
        table.add_row(str(entry["rank"]), _plain(entry["username"]), f"{entry['score']:,}")
    console.print(table)
    console.print(f"revision {tally.position[1]} of epoch {tally.position[0]}", style="dim", soft_wrap=True)
    console.print(f"{endpoints.http}/v1/boards/{words.MAIN_BOARD}/standings", soft_wrap=True)


def _plain(name: str) -> str:
    """A name as it is, not as markup."""
    return name.replace("[", "\\[")
