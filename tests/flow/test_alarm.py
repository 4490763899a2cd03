import threading

from streamer.flow.alarm import Alarm


def test_calls_are_made_in_the_order_in_which_they_are_due():
    alarm = Alarm("alarm")
    made: list[str] = []
    done = threading.Event()
    alarm.after(0.3, done.set)
    alarm.after(0.2, lambda: made.append("second"))
    alarm.after(0.1, lambda: made.append("first"))
    assert done.wait(30)
    assert made == ["first", "second"]
    again = threading.Event()
    alarm.after(0, again.set)
    assert again.wait(30), "after a pause without any"
    alarm.close()


def test_a_call_may_ask_for_the_next_one():
    alarm = Alarm("alarm")
    done = threading.Event()
    alarm.after(0, lambda: alarm.after(0, done.set))
    assert done.wait(30)
    alarm.close()


def test_nothing_is_called_once_it_is_closed():
    alarm = Alarm("to-be-closed")
    called = threading.Event()
    alarm.after(3600, called.set)
    alarm.close()
    for thread in threading.enumerate():
        if thread.name == "to-be-closed":
            thread.join(30)
            assert not thread.is_alive()
    alarm.after(0, called.set)
    assert not called.is_set()


def test_without_a_call_there_is_no_thread():
    alarm = Alarm("idle")
    alarm.close()
    assert "idle" not in {thread.name for thread in threading.enumerate()}
