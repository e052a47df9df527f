"""Alerts: Prometheus' own tool tests each, and each names a page that says what to do."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.rules import alert_rules
from tests.support.tools import required_tool

ROOT = Path(__file__).parents[3]
TESTS = Path(__file__).with_name("alerts.yaml")
RUNBOOKS = ROOT / "docs" / "runbooks"


def rules() -> list[dict[str, Any]]:
    return [rule for group in alert_rules()["groups"] for rule in group["rules"]]


def test_each_alert_fires_on_what_it_is_for_and_on_nothing_else(tmp_path: Path) -> None:
    tool = required_tool("promtool")
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(alert_rules()))
    shutil.copy(TESTS, tmp_path / "tests.yaml")
    for arguments in (["check", "rules", "rules.yaml"], ["test", "rules", "tests.yaml"]):
        done = subprocess.run([tool, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_is_tested_firing_and_silent() -> None:
    content = yaml.safe_load(TESTS.read_text())
    tested = [case for test in content["tests"] for case in test["alert_rule_test"]]
    for rule in rules():
        cases = [case for case in tested if case["alertname"] == rule["alert"]]
        assert any(case["exp_alerts"] for case in cases), f"{rule['alert']} never fires"
        assert any(not case["exp_alerts"] for case in cases), f"{rule['alert']} is never silent"


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule["alert"]))
def test_each_alert_has_a_page_that_says_what_it_means_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"]["summary"]
    page = ROOT / rule["annotations"]["runbook_url"]
    assert page.parent == RUNBOOKS
    content = page.read_text()
    assert f"`{rule['alert']}`" in content
    for part in ("## What it means", "## What to look at", "## What to do"):
        assert part in content


def test_no_page_is_without_an_alert() -> None:
    named = {Path(rule["annotations"]["runbook_url"]).name for rule in rules()}
    assert named == {page.name for page in RUNBOOKS.glob("*.md")}
