"""Who sits in which slot, and whose pages are which: the host's side of a pool of pages.

A row that has a slot waits there until its pages can be had, has its prompt read piece by piece between the decode
steps of others, and is then live: its pages grow with it. Where pages run out, the youngest row is put back and later
drawn again from its seed, which gives the same tokens. Rows with the same prompt share its full pages.
"""

import sys
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import jax
import numpy as np

from jopsd.models.pages import PAGE
from jopsd.sampling.capacity import Piece, pages_for, pieces_of
from jopsd.sampling.engine import Engine, Row, read_chunk, row_arguments

PIECES = 8  # of prompts that one call of `prefill` may read
PROMPT_TOKENS = 1024  # padded tokens of prompts that are read before the live rows go on drawing

Table = dict[int, int]  # page by its place in a row's table


class Ledger:
    """How many users each page of one pool has. Page 0 is nobody's."""

    def __init__(self, pages: int):
        self.free = deque(range(1, pages))
        self._users = [0] * pages

    def take(self) -> int:
        """A free page, with one user."""
        page = self.free.popleft()
        self._users[page] = 1
        return page

    def share(self, page: int) -> int:
        """The same page, with one user more."""
        self._users[page] += 1
        return page

    def drop(self, page: int) -> None:
        """One user fewer; without any the page is free."""
        self._users[page] -= 1
        if self._users[page] == 0:
            self.free.append(page)


@dataclass(eq=False)
class Seat:
    """A row in a slot.

    Attributes:
      age: rises with every row that is seated. tables: pages by kind of layer.
      filled: columns that hold tokens. pieces: of the prompt, not read yet. live: whether it draws.
      copies: by kind, (place, page) of a shared prompt's last page, to be copied before it starts.
    """

    row: Row
    slot: int
    age: int
    tables: dict[str, Table]
    filled: int = 0
    pieces: deque[Piece] = field(default_factory=deque)
    live: bool = False
    placed: bool = False
    copies: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def prompt(self) -> tuple[int, ...]:
        """What is read before the first draw: the prompt without its last token."""
        return self.row.request.prompt_ids[:-1]

    @property
    def left(self) -> int:
        """Tokens it may still draw."""
        return self.row.request.params.max_new_tokens - (self.filled - len(self.prompt) if self.live else 0)


class Seats:
    """The slots of one engine, from the first row to the last. Used by one thread at a time.

    `seat` rows into free slots, then `advance` and `collect` in turn: one call of `decode` each.
    """

    def __init__(self, engine: Engine):
        self.engine, self.state = engine, engine.init_state()
        shape = engine.shape
        self._per_shard = shape.slots // shape.shards
        self._ledgers = [{kind: Ledger(count) for kind, count in shape.pages} for _ in range(shape.shards)]
        self._seats: dict[int, Seat] = {}
        self._prompts: list[OrderedDict] = [OrderedDict() for _ in range(shape.shards)]  # prompt -> pages by kind
        self._ages, self._updates = 0, engine.updates
        self._ended: list[int] = []  # slots whose rows are to be stopped on the device

    def seat(self, row: Row, slot: int) -> None:
        """Gives a free slot to a row; it starts with the next `advance` that has pages for it."""
        self._seats[slot] = Seat(row, slot, self._ages, {kind: {} for kind, _ in self.engine.shape.pages})
        self._ages += 1

    def cancel(self, slots: Iterable[int]) -> None:
        """Ends rows where they stand and frees their slots."""
        for slot in slots:
            self._leave(self._seats.pop(slot))

    def advance(self) -> jax.Array | None:
        """Reads prompts, starts rows and draws up to `chunk` tokens for each live one: the array for `collect`.

        None where no row is seated.
        """
        if not self._seats:
            return None
        if self.engine.updates != self._updates:
            self._updates = self.engine.updates
            for shard, prompts in enumerate(self._prompts):
                for prompt in list(prompts):  # a prompt's keys and values belong to the weights that made them
                    self._forget(shard, prompt)
        self._read_prompts()
        self._stop_ended()
        self._start()
        live = sorted((seat for seat in self._seats.values() if seat.live), key=lambda seat: seat.age)
        for seat in live:
            if seat.live and not self._grow(seat, seat.filled + min(self.engine.chunk, seat.left)):
                self._put_back(seat)
        self._stop_ended()
        tables = self._tables(seat for seat in self._seats.values() if seat.live)
        self.state, packed = self.engine.decode(self.state, tables)
        return packed

    def collect(self, packed: jax.Array) -> list[tuple[int, Row]]:
        """Takes what `advance` drew; the rows that are done, with the slots they leave."""
        chunk, done = read_chunk(np.asarray(packed)), []
        for slot, seat in list(self._seats.items()):
            if not seat.live:
                continue
            seat.filled += int(chunk.count[slot])
            if seat.row.extend(chunk, slot):
                self._free(seat)
                del self._seats[slot]
                done.append((slot, seat.row))
        return done

    # ---------------------------------------------------------------------------------------------- pages

    def _shard(self, seat: Seat) -> int:
        return seat.slot // self._per_shard

    def _reserve(self, seat: Seat, wanted: dict[str, int]) -> bool:
        """Whether so many pages are free by kind, once shared prompts that nobody reads are given back."""
        ledgers, prompts = self._ledgers[self._shard(seat)], self._prompts[self._shard(seat)]
        while any(len(ledgers[kind].free) < count for kind, count in wanted.items()):
            if not prompts:
                return False
            self._forget(self._shard(seat), next(iter(prompts)))
        return True

    def _forget(self, shard: int, prompt: tuple[int, ...]) -> None:
        for kind, pages in self._prompts[shard].pop(prompt).items():
            for page in pages.values():
                self._ledgers[shard][kind].drop(page)

    def _grow(self, seat: Seat, columns: int) -> bool:
        """Gives a row the pages of its columns up to `columns`; younger rows are put back for it if need be."""
        self._give_back(seat)
        while not self._reserve(seat, {kind: len(places) for kind, places in self._missing(seat, columns).items()}):
            shard = self._shard(seat)
            younger = [s for s in self._seats.values() if s.placed and s.age > seat.age and self._shard(s) == shard]
            if not younger:
                return False
            self._put_back(max(younger, key=lambda s: s.age))
        self._take(seat, self._missing(seat, columns))
        return True

    def _missing(self, seat: Seat, columns: int) -> dict[str, list[int]]:
        """Places of its tables, by kind, that a row lacks to have `columns` columns."""
        return {
            kind: [p for p in range(self._first(kind, seat.filled), pages_for(columns)) if p not in table]
            for kind, table in seat.tables.items()
        }

    def _take(self, seat: Seat, places: dict[str, list[int]]) -> None:
        for kind, wanted in places.items():
            ledger = self._ledgers[self._shard(seat)][kind]
            seat.tables[kind].update((place, ledger.take()) for place in wanted)

    def _first(self, kind: str, column: int) -> int:
        """The first page that a token in this column sees."""
        window = self.engine.cfg.window
        return 0 if kind == "full" else max(column - (window - 1), 0) // PAGE

    def _give_back(self, seat: Seat) -> None:
        """Frees pages that have left the window."""
        for kind, table in seat.tables.items():
            for place in [place for place in table if place < self._first(kind, seat.filled)]:
                self._ledgers[self._shard(seat)][kind].drop(table.pop(place))

    def _free(self, seat: Seat) -> None:
        for kind, table in seat.tables.items():
            for page in table.values():
                self._ledgers[self._shard(seat)][kind].drop(page)
            table.clear()
        self._drop_copies(seat)

    def _drop_copies(self, seat: Seat) -> None:
        for kind, (_, page) in seat.copies.items():
            self._ledgers[self._shard(seat)][kind].drop(page)
        seat.copies.clear()

    def _leave(self, seat: Seat) -> None:
        self._free(seat)
        if seat.live:
            self._ended.append(seat.slot)

    def _put_back(self, seat: Seat) -> None:
        """Lets a row wait in its slot as if it had not started."""
        self._leave(seat)
        seat.row.restart()
        seat.live, seat.placed, seat.filled = False, False, 0
        seat.pieces.clear()
        self.engine.putbacks += 1
        if self.engine.putbacks == 1:
            print(
                "note: the sampler's pages are full, so its youngest rows wait and are drawn again, with the same "
                "tokens; raise sampling.cache_gb or lower sampling.slots where that takes long",
                file=sys.stderr,
            )

    # ------------------------------------------------------------------------------------ from waiting to live

    def _place(self) -> None:
        """Gives waiting rows their first pages, the oldest first; on each shard the first that must wait ends it."""
        stuck: set[int] = set()
        reading = {(self._shard(s), s.prompt) for s in self._seats.values() if s.pieces}
        for seat in sorted((s for s in self._seats.values() if not s.placed), key=lambda s: s.age):
            shard = self._shard(seat)
            if shard in stuck or (shard, seat.prompt) in reading:
                continue
            if not self._place_one(seat):
                stuck.add(shard)
            elif seat.pieces:
                reading.add((shard, seat.prompt))

    def _place_one(self, seat: Seat) -> bool:
        shard, prompt = self._shard(seat), seat.prompt
        shared = self._prompts[shard].get(prompt) if prompt else None
        if shared is not None:
            self._prompts[shard].move_to_end(prompt)
            self._share(seat, shared)
            seat.filled = len(prompt)
        missing = self._missing(seat, len(prompt) + min(self.engine.chunk, seat.left))
        # A page is kept for each row that is under way, so that a newcomer is not put back at once.
        live = sum(s.placed and self._shard(s) == shard for s in self._seats.values())
        wanted = {
            kind: min(len(places), self._most(kind)) + (live if kind == "full" else 0)
            for kind, places in missing.items()
        }
        if not self._reserve(seat, wanted):
            self._free(seat)
            seat.filled = 0
            return False
        seat.placed = True
        if shared is None:
            seat.pieces.extend(pieces_of(len(prompt), self.engine.platform))
            self.engine.prefills += bool(prompt)
        # Behind a window pages come and go as the prompt is read.
        self._take(seat, missing if not seat.pieces else {k: v for k, v in missing.items() if k == "full"})
        return True

    def _most(self, kind: str) -> int:
        """Pages that one row ever holds at once."""
        return dict(self.engine.shape.pages)[kind] - 1

    def _share(self, seat: Seat, shared: dict[str, Table]) -> None:
        """Full pages of a prompt are read by all; its last one, which is written further, is copied."""
        full = len(seat.prompt) // PAGE
        for kind, pages in shared.items():
            ledger = self._ledgers[self._shard(seat)][kind]
            for place, page in pages.items():
                if place < full:
                    seat.tables[kind][place] = ledger.share(page)
                else:
                    seat.copies[kind] = place, ledger.share(page)  # until it is copied

    def _read_prompts(self) -> None:
        """Places rows and reads their prompts: all where nobody draws yet, else about `PROMPT_TOKENS` of them."""
        spent = 0
        while True:
            self._place()
            reading = sorted((s for s in self._seats.values() if s.pieces), key=lambda s: s.age)
            busy = any(s.placed and not s.pieces for s in self._seats.values())
            if not reading or (spent >= PROMPT_TOKENS and busy):
                return
            read = self._read_pieces(reading)
            if read == 0:
                return
            spent += read

    def _read_pieces(self, reading: list[Seat]) -> int:
        """One call of `prefill`, with pieces of one width: padded tokens that it read, 0 if no page was free."""
        shape, width = self.engine.shape, reading[0].pieces[0].width
        tokens = np.zeros((PIECES, shape.shards, width), np.int32)
        start, count = np.zeros((2, PIECES, shape.shards), np.int32)
        tables = {kind: np.zeros((PIECES, shape.shards, shape.table_width), np.int32) for kind, _ in shape.pages}
        used = [0] * shape.shards
        for seat in reading:
            shard = self._shard(seat)
            while seat.pieces and seat.pieces[0].width == width and used[shard] < PIECES:
                piece = seat.pieces[0]
                if not self._grow(seat, piece.start + piece.count):
                    break
                at = used[shard], shard
                tokens[at][: piece.count] = seat.prompt[piece.start : piece.start + piece.count]
                start[at], count[at] = piece.start, piece.count
                for kind, table in tables.items():
                    _fill(table[at], seat.tables[kind])
                seat.pieces.popleft()
                seat.filled = piece.start + piece.count
                used[shard] += 1
            if seat.placed and not seat.pieces:
                self._keep_prompt(seat)
        if max(used):
            self.state = self.engine.prefill(self.state, tokens, start, count, tables, np.int32(max(used)))
        return max(used) * width

    def _keep_prompt(self, seat: Seat) -> None:
        """Notes the pages of a prompt for rows that have the same one."""
        shard = self._shard(seat)
        if seat.prompt and seat.prompt not in self._prompts[shard]:
            last = pages_for(len(seat.prompt))
            self._prompts[shard][seat.prompt] = {
                kind: {place: self._ledgers[shard][kind].share(page) for place, page in table.items() if place < last}
                for kind, table in seat.tables.items()
            }

    def _start(self) -> None:
        """Makes rows live whose prompts are read."""
        ready = [s for s in self._seats.values() if s.placed and not s.live and not s.pieces]
        if not ready:
            return
        shape = self.engine.shape
        ints = np.full((shape.slots, 7 + shape.max_stop_ids), shape.slots, np.int32)
        floats = np.ones((shape.slots, 2), np.float32)
        pairs = {kind: np.zeros((2, shape.shards, shape.slots), np.int32) for kind, _ in shape.pages}
        used = {kind: [0] * shape.shards for kind in pairs}
        for number, seat in enumerate(ready):
            shard = self._shard(seat)
            ints[number], floats[number] = row_arguments(
                seat.row.request, seat.row.index, seat.slot, shape.max_stop_ids
            )
            for kind, (place, page) in seat.copies.items():
                pairs[kind][:, shard, used[kind][shard]] = page, seat.tables[kind][place]
                used[kind][shard] += 1
            self._drop_copies(seat)
            seat.live = True
        copies = {kind: (*pair, np.int32(max(used[kind]))) for kind, pair in pairs.items()}
        self.state = self.engine.admit(self.state, ints, floats, copies)

    def _stop_ended(self) -> None:
        if self._ended:
            self.state = self.engine.halt(self.state, self._ended)
            self._ended.clear()

    def _tables(self, seats: Iterable[Seat]) -> dict[str, np.ndarray]:
        shape = self.engine.shape
        tables = {kind: np.zeros((shape.slots, shape.table_width), np.int32) for kind, _ in shape.pages}
        for seat in seats:
            for kind, table in tables.items():
                _fill(table[seat.slot], seat.tables[kind])
        return tables


def _fill(row: np.ndarray, table: Table) -> None:
    """Writes a row's pages into its places [M]."""
    row[list(table)] = list(table.values())
