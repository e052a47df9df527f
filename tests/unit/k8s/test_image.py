"""The Dockerfile as the image check reads it."""

from k8s.image import ROOT, STAGE, context, steps


def test_continued_lines_are_one_step_and_comments_none() -> None:
    results = list(
        steps("ARG A=1\nFROM x AS build\n# no\nRUN a \\\n  # nor this\n  && b\nFROM y AS end\nRUN c\n")
    )
    assert [(step.stage, step.name) for step in results] == [
        ("", "ARG"),
        ("build", "FROM"),
        ("build", "RUN"),
        ("end", "FROM"),
        ("end", "RUN"),
    ]
    assert results[2].text.split() == ["a", "&&", "b"]


def test_the_build_stage_needs_nothing_but_its_prefix() -> None:
    ours = [step for step in steps((ROOT / "Dockerfile").read_text()) if step.stage == STAGE]
    runs = [step.text for step in ours if step.name == "RUN"]
    assert len(runs) == 6
    assert not any(word in text for text in runs for word in ("apt-get", "useradd", "/etc", "/usr"))


def test_the_image_is_built_from_what_exists_and_from_little() -> None:
    names = context(ROOT)
    assert all((ROOT / name).exists() for name in names)
    assert {"serving", "registry", "db", "constraints.txt", "requirements.txt"} <= set(names)
    assert not {"tests", ".git", ".venv", "k8s"} & set(names)


def test_it_runs_as_an_ordinary_user_and_has_a_health_check() -> None:
    last = list(steps((ROOT / "Dockerfile").read_text()))
    users = [step.text for step in last if step.name == "USER"]
    assert users == ["10001:10001"]
    assert any(step.name == "HEALTHCHECK" for step in last)
