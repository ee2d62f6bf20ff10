"""One lock for assets and runs."""

import threading

from course import locks


def test_a_process_that_waits_says_for_what(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(locks, "NOTICE", 0.01)
    held, go, order = threading.Event(), threading.Event(), []

    def other():
        # A second lock object on the same file, as another process would have.
        with locks.one_at_a_time(tmp_path / "lock", "making a model"):
            held.set()
            go.wait(30)
            order.append("other")

    def tell(*words, **keywords):
        print(*words, **keywords)
        go.set()

    monkeypatch.setattr(locks, "print", tell, raising=False)
    thread = threading.Thread(target=other)
    thread.start()
    assert held.wait(30)
    with locks.one_at_a_time(tmp_path / "lock", "making a model"):
        order.append("this one")
    thread.join()
    assert order == ["other", "this one"]
    said = capsys.readouterr().err
    assert said == "course: waiting for another process that is making a model ...\n"
