"""How far the clocks of the nodes are from the driver's."""

from collections.abc import Mapping, Sequence

from moxin.doctor.finding import Finding, Level, count

WARN_S = 1.0
"""From here on lines of different nodes' logs stand in the wrong order."""
REFUSE_S = 300.0
"""S3 refuses signatures that are 15 minutes off, by its own clock; Kerberos gives up at 5."""
FIX = "start chrony (or systemd-timesyncd) there"


def offset(samples: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """Seconds that a clock is ahead, and by how much that may be wrong.

    A sample is (asked, the clock's answer, answered), the outer two by our clock. As in NTP (RFC 5905, §8 and §10) the
    sample of the shortest round trip counts, and half of that trip bounds the error.
    """
    asked, there, answered = min(samples, key=lambda sample: sample[2] - sample[0])
    return there - (asked + answered) / 2, (answered - asked) / 2


def judge(offsets: Mapping[str, tuple[float, float]], *, s3: bool) -> list[Finding]:
    """Of what `offset` said of every node. An offset counts as far as it is beyond its possible error."""
    findings = []
    for node, (ahead, error) in offsets.items():
        sure = max(abs(ahead) - error, 0.0)
        if sure >= WARN_S:
            result = f"{node} is {abs(ahead):,.1f} s {'ahead' if ahead > 0 else 'behind'} of the driver"
            level: Level = "refuse" if s3 and sure >= REFUSE_S else "warn"
            findings.append(Finding("clock", level, result, FIX))
    if not findings and offsets:
        widest = max(abs(ahead) + error for ahead, error in offsets.values())
        result = f"{count(len(offsets), 'node')} within {max(widest * 1e3, 1):,.0f} ms of the driver"
        findings.append(Finding("clock", "ok", result))
    return findings
