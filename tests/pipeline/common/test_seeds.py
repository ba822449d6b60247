from pipeline.common.seeds import generator


def test_a_stream_depends_on_its_arguments_only() -> None:
    first = generator(7, "pair", 3).random(4)
    generator(7, "pair", 2).random(100)
    assert (generator(7, "pair", 3).random(4) == first).all()


def test_streams_differ_in_every_argument() -> None:
    draws = {
        generator(*arguments).random()
        for arguments in [
            (0, "pair", 1),
            (1, "pair", 1),
            (0, "other", 1),
            (0, "pair", 2),
            (0, "pair"),
            (0, "pair", 1, 1),
            (11, "pair", 1),
            (1, "pair", 11),
            (111, "pair"),
        ]
    }
    assert len(draws) == 9


def test_golden_value() -> None:
    # A different value means that no existing data set can be reproduced.
    assert generator(0, "pair", 0).integers(1 << 32) == 869547161
