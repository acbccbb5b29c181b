"""The budget of pixels over the threads of a served model: who is answered now, who later, who not at all."""

from threading import Event

from catalogue.images.decoding_threads import (
    BATCH_WEIGHT,
    REQUEST_WEIGHT,
    WAITING_WEIGHT,
    DecodingThreads,
    fault_of_weight,
)


def test_a_batch_takes_what_its_budget_holds_and_nobody_waits_for_a_large_one() -> None:
    decoding = DecodingThreads()
    budget = BATCH_WEIGHT * decoding.threads
    assert decoding.in_batch([budget // 2, budget, budget // 2, 1, 0]) == [True, False, True, False, True]
    assert decoding.in_batch([]) == []
    decoding.shutdown()


def test_results_of_a_batch_keep_their_order() -> None:
    decoding = DecodingThreads()
    for count in (0, 1, 50):
        assert list(decoding.map(str, range(count))) == [str(number) for number in range(count)]
    decoding.shutdown()


def test_what_waits_aside_is_bounded_until_it_was_worked_on() -> None:
    decoding, gate, done = DecodingThreads(), Event(), []

    def work() -> None:
        gate.wait()
        done.append(True)

    room = WAITING_WEIGHT // REQUEST_WEIGHT
    taken = [decoding.set_aside(REQUEST_WEIGHT, work) for _ in range(room + 2)]
    ended_early = len(done)
    gate.set()
    decoding.shutdown()
    assert taken == [True] * room + [False] * 2
    assert not ended_early
    assert len(done) == room
    assert decoding.waiting == 0


def test_work_that_fails_leaves_room_for_the_next() -> None:
    decoding, ended = DecodingThreads(), Event()

    def fail() -> None:
        raise MemoryError

    for _ in range(3 * WAITING_WEIGHT // REQUEST_WEIGHT):
        while not decoding.set_aside(REQUEST_WEIGHT, fail):
            ended.wait(0.01)
    decoding.shutdown()
    assert decoding.waiting == 0


def test_images_that_are_too_much_together_are_counted_in_the_message() -> None:
    assert fault_of_weight(REQUEST_WEIGHT, 5) == ""
    assert fault_of_weight(200_000_000, 10).startswith("10 images of 200 megapixels to decode; at most 160 are taken")
