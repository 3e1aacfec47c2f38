"""Document boundaries as models take them."""

from __future__ import annotations

import numpy as np

from launcher.samples.pieces import Pieces, join


def pieces_of(*pieces: tuple[int, int, int, int, int]) -> Pieces:
    return Pieces(*np.array(pieces, dtype=np.int64).reshape(-1, 5).T)


# row, column, length, document, offset: two documents in row 0, none in row 1, the rest of document 8 in row 2
EXAMPLE = pieces_of((0, 0, 3, 7, 0), (0, 3, 2, 8, 0), (2, 0, 6, 8, 2))


def test_position_ids_restart_at_every_piece_and_count_on_behind_the_last() -> None:
    position_ids = EXAMPLE.position_ids((3, 6))
    assert position_ids.tolist() == [[0, 1, 2, 0, 1, 2], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]]
    assert position_ids.dtype == np.int64


def test_cumulative_lengths_say_where_pieces_begin_among_the_real_tokens() -> None:
    cumulative = EXAMPLE.cumulative_lengths()
    assert cumulative.tolist() == [0, 3, 5, 11]
    assert cumulative.dtype == np.int32


def test_segments_number_the_pieces_of_a_row() -> None:
    segments = EXAMPLE.segments((3, 6))
    assert segments.tolist() == [[0, 0, 0, 1, 1, -1], [-1] * 6, [0] * 6]
    assert segments.dtype == np.int32


def test_marks_cover_the_chosen_pieces_alone() -> None:
    assert EXAMPLE.mark(np.array([False, True, False]), (3, 6)).tolist() == [[0, 0, 0, 1, 1, 0], [0] * 6, [0] * 6]
    assert EXAMPLE.mark(np.array([True, True, True]), (3, 6)).tolist() == [[1] * 5 + [0], [0] * 6, [1] * 6]


def test_rows_read_in_parts_come_together_in_the_order_of_the_batch() -> None:
    other = pieces_of((0, 0, 4, 1, 0), (1, 0, 1, 2, 0))
    joined = join([EXAMPLE, other], [np.array([1, 2, 4]), np.array([0, 3])])
    assert joined.rows_P.tolist() == [0, 1, 1, 3, 4]
    assert joined.documents_P.tolist() == [1, 7, 8, 2, 8]
    assert joined.columns_P.tolist() == [0, 0, 3, 0, 0]
    assert joined.lengths_P.tolist() == [4, 3, 2, 1, 6]
    assert joined.offsets_P.tolist() == [0, 0, 0, 0, 2]


def test_a_batch_without_pieces_is_padding() -> None:
    nothing = pieces_of()
    assert nothing.segments((2, 3)).tolist() == [[-1] * 3] * 2
    assert nothing.position_ids((2, 3)).tolist() == [[0, 1, 2]] * 2
    assert nothing.cumulative_lengths().tolist() == [0]
