"""What a run came to, as text."""

from collections import Counter
from dataclasses import dataclass

from soak.account import Account
from tests.kit.report import Report, percentile

LONG_WAIT = 1.0


@dataclass
class Result:
    """What the run came to; everything in `problems` is a defect."""

    report: Report
    account: Account
    explained: Counter[str]
    quiet_p99: float
    planned_p99: float
    served: int
    deaths: int
    memory: tuple[int, int]
    problems: list[str]

    def text(self) -> str:
        account, report = self.account, self.report
        lines = ["operations:"]
        lines += [f"  {count:>5}  {name}" for name, count in sorted(account.operations.items())]
        lines += [f"  {count:>5}  declined: {why}" for why, count in account.refused.items()]
        lines += [f"  {count:>5}  reload {phase}" for phase, count in account.reloads.items()]
        lines.append("clients beside the load:")
        lines += [f"  {count:>5}  {kind}: {how}" for (kind, how), count in sorted(account.asides.items())]
        lines.append(f"load: {report.summary()}")
        lines += [f"  {count:>5}  lost, explained: {why}" for why, count in self.explained.items()]
        late = percentile(sorted(report.lags), 0.99)
        waited = [record for record in report.records if record.ended - record.sent > LONG_WAIT]
        harmed = sum(account.explanation(record.port, record.ended) is not None for record in waited)
        lines += [
            f"p99 ms: quiet {self.quiet_p99 * 1000:.1f}, in planned operations {self.planned_p99 * 1000:.1f}",
            f"the client's own delay, p99: {late * 1000:.1f} ms",
            f"waited more than {LONG_WAIT:g} s: {len(waited)} requests, {harmed} of them at a harmed process",
            f"requests counted by the server: {self.served}; deaths: {self.deaths}",
            f"the supervisor's memory: {self.memory[0] / 1e6:.1f} MB, then {self.memory[1] / 1e6:.1f} MB",
        ]
        lines += [f"UNEXPLAINED: {problem}" for problem in self.problems]
        lines.append(f"unexplained: {len(self.problems)}")
        return "\n".join(lines)
