from esnac.executors import SerialExecutor


def test_jobs_come_back_in_order_one_at_a_time():
    seen = []
    executor = SerialExecutor(lambda job: seen.append(job) or job * 10)
    for job in (3, 1, 2):
        executor.submit(job)
    assert seen == []
    assert [executor.collect() for _ in range(4)] == [[(3, 30)], [(1, 10)], [(2, 20)], []]


def test_closing_drops_what_has_not_started():
    executor = SerialExecutor(str)
    executor.submit(1)
    executor.close()
    assert executor.collect() == []
