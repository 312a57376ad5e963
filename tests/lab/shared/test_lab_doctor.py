"""The doctor finds nothing wrong with a lab that is well."""

import json


def test_a_running_lab_is_well(small_lab):
    done = small_lab.qtrunk("doctor", "--format", "json", check=False)
    found = {check["check"]: check for check in json.loads(done.stdout)["checks"]}
    # Restarts and alarms may be other tests' doing; nothing else may be wrong, and nothing is left out. What a busy
    # machine looks like (clocks, disks, ends that lag) is worth a warning at most.
    wrong = {name: check["findings"] for name, check in found.items() if check["level"] not in ("ok", "warning")}
    assert set(wrong) <= {"alarms"}, wrong
    names = ("certificates", "ports", "modules", "operator", "audit logs", "permissions", "revocation lists")
    assert {found[name]["level"] for name in names} == {"ok"}, found
