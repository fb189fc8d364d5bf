from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from glm3sdk.adapters.openvino.blocks import BlockTables

SLOTS, MOST, SIZE = 3, 10, 4

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(0, SLOTS - 1), st.integers(1, MOST)),
        st.tuples(st.just("truncate"), st.integers(0, SLOTS - 1), st.integers(0, MOST)),
        st.tuples(
            st.just("share"),
            st.tuples(st.integers(0, SLOTS - 1), st.integers(0, SLOTS - 1)),
            st.integers(0, MOST),
        ),
    ),
    max_size=40,
)


@given(STEPS)
def test_slots_read_back_what_they_wrote_whatever_others_do(steps):
    tables = BlockTables(slots=SLOTS, max_seq_length=MOST, block_tokens=SIZE)
    cache = [[None] * SIZE for _ in range(tables.total)]
    held: list[list[int]] = [[] for _ in range(SLOTS)]
    written = 0
    for kind, where, count in steps:
        if kind == "append":
            mine = held[where]
            more = min(count, MOST - len(mine))
            for source, target in tables.reserve(where, len(mine), more):
                cache[target] = list(cache[source])
            for _ in range(more):
                written += 1
                block = tables.of(where, len(mine) + 1)[len(mine) // SIZE]
                cache[block][len(mine) % SIZE] = written
                mine.append(written)
        elif kind == "truncate":
            held[where] = held[where][:count]
            tables.truncate(where, len(held[where]))
        else:
            source, target = where
            kept = min(count, len(held[source]))
            tables.share(source, target, kept)
            held[target] = held[source][:kept]
        for slot, tokens in enumerate(held):
            blocks = tables.of(slot, len(tokens))
            read = [value for block in blocks for value in cache[block]]
            assert read[: len(tokens)] == tokens


def test_a_shared_prefix_takes_no_blocks_and_a_free_slot_gives_its_own_back():
    tables = BlockTables(slots=2, max_seq_length=8, block_tokens=4)
    tables.reserve(0, 0, 8)
    tables.share(0, 1, 8)
    assert list(tables.of(1, 8)) == list(tables.of(0, 8))
    # A whole block is never written to again: only the second one is copied.
    tables.truncate(1, 6)
    (copy,) = tables.reserve(1, 6, 2)
    assert copy == (tables.of(0, 8)[1], tables.of(1, 8)[1])
    tables.truncate(0, 0)
    tables.truncate(1, 0)
    tables.reserve(1, 0, 8)
    tables.reserve(0, 0, 8)
    assert sorted([*tables.of(0, 8), *tables.of(1, 8)]) == [0, 1, 2, 3]
