"""What runs side by side: in two workers, by files and live platforms, and one live platform at a time.

pytest-xdist 3.8 can't group the tests of pytest 9.2 by marks, and knows no order.
"""

from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

LIVE = "tests/acceptance/"


def group(nodeid: str) -> str:
    """Return what runs in one worker: a file, or the folder of acceptance tests that share a live platform."""
    path = nodeid.partition("::")[0]
    return "/".join(path.split("/")[:3]) if path.startswith(LIVE) else path


class GroupScheduling(LoadScopeScheduling):
    """Hands out groups in order, and live platforms beside other tests as long as there are some."""

    def _split_scope(self, nodeid: str) -> str:
        return group(nodeid)

    def _assign_work_unit(self, node: WorkerController) -> None:
        if self._live_elsewhere(node):
            other = next((each for each in self.workqueue if not each.startswith(LIVE)), None)
            if other is not None:
                self.workqueue.move_to_end(other, last=False)
        super()._assign_work_unit(node)

    def remove_node(self, node: WorkerController) -> str | None:
        """Leave out the test that ended its worker, which pytest-xdist would give to the next one, again and again."""
        unfinished = (
            (tests, test)
            for tests in self.assigned_work[node].values()
            for test, finished in tests.items()
            if not finished
        )
        tests, fatal = next(unfinished, ({}, None))
        if fatal is not None:
            tests[fatal] = True
        # A worker that gets a group without a test to run waits for another one forever.
        work = self.assigned_work[node]
        for done in [scope for scope, tests in work.items() if all(tests.values())]:
            del work[done]
        super().remove_node(node)
        return fatal

    def _live_elsewhere(self, node: WorkerController) -> bool:
        return any(
            scope.startswith(LIVE) and not all(tests.values())
            for worker, scopes in self.assigned_work.items()
            if worker is not node
            for scope, tests in scopes.items()
        )
