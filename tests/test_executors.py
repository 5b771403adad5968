from esnac.executors import SerialExecutor


def test_a_job_runs_when_its_result_is_collected() -> None:
    seen: list[int] = []

    def work(job: int) -> int:
        seen.append(job)
        return job * 10

    executor = SerialExecutor(work)
    assert executor.free
    executor.submit(3)
    assert not executor.free
    assert seen == []
    assert executor.collect() == [(3, 30)]
    assert seen == [3]
    assert executor.free
    assert executor.collect() == []
