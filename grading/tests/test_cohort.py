"""A cohort's page: the same failures are one cluster, and everybody can read it.

No comment goes out that three students have not verified.
"""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from grading.cohort.journal import Entry
from grading.export import cohort_page
from grading.judge.report import CheckResult, Report
from labs.harness.learner.diagnosis import Symptom

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NEEDS_CHROMIUM = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


def check(todo, name, message="", points=3, unwritten=False, hidden=False):
    return CheckResult(todo, name, points, 0 if message else points, hidden, message, f"TODO {todo}", "c", (), unwritten)


def entry(student, *checks, late=0.0, final=None):
    report = Report(student, "06", "0" * 64, "limits", "5eed", {"checks": "abc"}, checks)
    return Entry(report, None, late, report.score if final is None else final)


def wrong_list(student, size):
    """Fails one check of TODO 1, in words that differ from student to student in their numbers only."""
    return entry(student, check(1, "every_block_is_free", f"FreeList({size}) lacks [{size}], and has 'x{size}' too many"),
                 check(1, "takes_all_or_none"), check(2, "rounds_up"))


def right(student):
    return entry(student, check(1, "every_block_is_free"), check(1, "takes_all_or_none"), check(2, "rounds_up"))


def untouched(student):
    return entry(student, *(check(todo, name, f"TODO {todo}: write it", unwritten=True) for todo, name in
                            ((1, "every_block_is_free"), (1, "takes_all_or_none"), (2, "rounds_up"))))


COHORT = [
    wrong_list("ada", 7), wrong_list("ben", 12), wrong_list("cem", 30), wrong_list("dora", 9), right("eli"), untouched("fay"),
    entry("gus", check(1, "every_block_is_free", "another message"), check(1, "takes_all_or_none"),
          check(2, "rounds_up", "off by 1")),
    entry("<script>alert('x')</script>", check(1, "every_block_is_free"), check(1, "takes_all_or_none"),
          check(2, "rounds_up", "<img src=x>"), final=2.5)]
LIST = Symptom(1, "The free list does not begin with every block.", 1, ({"test_todo_1_every_block_is_free": ["00000000"]},))
NAMES = {1: {"every_block_is_free", "takes_all_or_none"}, 2: {"rounds_up"}}


def commented_clusters(symptoms=(LIST,)):
    return cohort_page.with_comments(cohort_page.clusters(COHORT), symptoms, NAMES)


def first():
    return commented_clusters()[0]


def test_the_same_checks_and_words_are_one_cluster_whatever_the_numbers():
    got = [(one.todo, one.students, one.unwritten) for one in cohort_page.clusters(COHORT)]
    assert got[0] == (1, ("ada", "ben", "cem", "dora"), False)
    assert sorted(got[1:]) == sorted([(1, ("fay",), True), (1, ("gus",), False), (2, ("fay",), True), (2, ("gus",), False),
                                      (2, ("<script>alert('x')</script>",), False)])


def test_a_cluster_has_the_same_name_in_every_report():
    assert first().id == cohort_page.clusters([wrong_list("zoe", 99)])[0].id != cohort_page.clusters(COHORT)[1].id


def test_predictions_are_in_no_cluster():
    assert cohort_page.clusters([entry("ada", CheckResult(0, "predictions", 15, 9, False, "60% are right", "", ""))]) == []


def test_a_comment_needs_a_symptom_that_fits_exactly_and_alone():
    assert first().comment == LIST.says
    assert commented_clusters()[-1].comment == "", "TODO 2 has no symptom"
    other = replace(LIST, says="Something else.")
    both = replace(LIST, patterns=({"test_todo_1_every_block_is_free": [], "test_todo_1_takes_all_or_none": []},))
    for symptoms in ((LIST, other), (replace(LIST, speaks=False),), (both,), (replace(LIST, todo=2),), ()):
        assert commented_clusters(symptoms)[0].comment == "", "unsure clusters get none"


def test_who_handed_in_nothing_that_runs_is_told_of_no_mistake_in_a_todo():
    """Their one failing check of TODO 1 is the one by which the list's mistake is known."""
    broken = entry("ivy", check(1, "every_block_is_free", "starter.py line 3: invalid syntax"),
                   check(2, "rounds_up", "starter.py line 3: invalid syntax"))
    wrong = entry("jon", check(1, "every_block_is_free", "FreeList(3) lacks [3]"), check(2, "rounds_up"))
    one, other = [cohort_page.with_comments(cohort_page.clusters([who]), (LIST,), NAMES)[0] for who in (broken, wrong)]
    assert (one.comment, one.unusable) == ("", True) and (other.comment, other.unusable) == (LIST.says, False)


def test_tests_of_the_lab_that_have_no_check_do_not_hide_a_symptom():
    wider = replace(LIST, patterns=({"test_todo_1_every_block_is_free": [], "test_todo_1_the_engine_runs_on_it": []},))
    assert commented_clusters((wider,))[0].comment == LIST.says


def test_only_a_comment_verified_against_three_students_of_the_cluster_goes_out():
    assert cohort_page.comments(commented_clusters()) == [], "nobody has looked yet"
    name = first().id
    marks = cohort_page.read_verified([f"{name}=ada, cem,dora"], commented_clusters())
    out = cohort_page.comments(cohort_page.marked(commented_clusters(), marks))
    assert out == [(student, 1, LIST.says) for student in ("ada", "ben", "cem", "dora")]
    silent = commented_clusters()[1].id
    for mark, told in ((f"{name}=ada,ben", "verified against 2 students; a comment goes out after 3"),
                       (f"{name}=ada,ada,ada", "against 1 students"),
                       (f"{name}=ada,ben,eli", "eli not in cluster"), ("9-000000=a,b,c", "not '9-000000=a,b,c'"),
                       (name, "CLUSTER=student"), (f"{silent}=fay,gus,ada", "no comment that could be verified")):
        with pytest.raises(ValueError, match=told):
            cohort_page.read_verified([mark], commented_clusters())


def test_scores_are_counted_in_tenths_the_full_score_in_the_last():
    assert [(one.low, one.high, one.count) for one in cohort_page.distribution(COHORT) if one.count] == [
        (0, 10, 1), (20, 30, 1), (30, 40, 1), (60, 70, 4), (90, 100, 1)]


# the page


def page(marks=()):
    clusters = commented_clusters()
    marked = cohort_page.marked(clusters, cohort_page.read_verified(marks, clusters))
    return cohort_page.page("06", "The block manager", COHORT, marked)


class Tags(HTMLParser):
    """Every tag with its attributes, and the text."""

    def __init__(self, text):
        super().__init__()
        self.seen, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def test_the_page_needs_nothing_else_and_runs_nothing():
    tags = Tags(page())
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in tags.seen}
    assert not [value for _, attributes in tags.seen for name, value in attributes.items()
                if name in ("src", "action", "onclick")]
    assert all(attributes["href"].startswith("#") for tag, attributes in tags.seen if tag == "a")
    assert "url(" not in page() and "@import" not in page()
    assert "<script>alert('x')</script>" in tags.text and "<img src=x>" in tags.text


def test_states_are_figures_and_words_and_links_lead_to_their_cluster():
    tags = Tags(page())
    words = {"solved", "partly", "failing", "not started"}
    cells = [attributes["class"] for tag, attributes in tags.seen
             if tag == "td" and attributes.get("class", "").startswith("state ")]
    assert len(cells) == 2 * len(COHORT) and {name.split()[1].replace("-", " ") for name in cells} <= words
    assert tags.text.count(", partly") == 5 and tags.text.count(", not started") == 2
    targets = {attributes["id"] for _, attributes in tags.seen if "id" in attributes}
    links = [attributes["href"][1:] for tag, attributes in tags.seen if tag == "a"]
    assert set(links) <= targets and len(links) - 1 == sum(len(one.students) for one in commented_clusters())


def test_the_page_says_what_goes_out_and_what_does_not():
    text = Tags(page()).text
    assert "Goes to nobody yet: not verified." in text and "Goes to all of them" not in text
    assert "Goes to all of them: verified against ada, ben, cem." in Tags(page([f"{first().id}=ada,ben,cem"])).text
    assert "No comment: no known mistake fits for sure." in text


def test_the_same_journal_gives_the_same_page():
    clusters = commented_clusters()
    others = cohort_page.with_comments(cohort_page.clusters(COHORT[::-1]), (LIST,), NAMES)
    assert cohort_page.page("06", "x", COHORT, clusters) == cohort_page.page("06", "x", COHORT[::-1], others)
    with pytest.raises(ValueError, match="no results of lab 07"):
        cohort_page.page("07", "x", [], [])


PROBE = """<script>
const linear = v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const shade = name => {
  const [r, g, b] = name.match(/[\\d.]+/g).map(Number).map(v => linear(v / 255));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const under = one => {
  while (one) {
    const c = getComputedStyle(one).backgroundColor;
    if (!/, 0\\)$/.test(c) && c !== 'transparent') return c;
    one = one.parentElement; } };
const texts = document.querySelectorAll('h1, h2, h3, p, .soft, a, th, td, dt, dd, summary, li, caption, code, .state span');
const found = [...texts].filter(one => one.innerText).map(one => {
  const [a, b] = [shade(getComputedStyle(one).color), shade(under(one))];
  return [one.tagName + '.' + one.className, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)]; });
document.body.innerHTML = '';
document.title = JSON.stringify({page: getComputedStyle(document.body).backgroundColor, contrasts: found});
</script>"""
"""Says the contrast of every text with what lies under it (of a pattern: its ground), as WCAG reckons it."""


def chromium(file, *options):
    """What headless Chromium makes of a page; its own requests are switched off."""
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync", f"--user-data-dir={file.parent / 'profile'}", "--dump-dom"]
    done = subprocess.run([CHROMIUM, *quiet, *options, file.as_uri()], capture_output=True, text=True, timeout=60)
    assert "<html" in done.stdout, done.stderr[-500:]
    return done.stdout


@pytest.mark.slow
@NEEDS_CHROMIUM
def test_a_browser_builds_from_it_what_is_written_there(tmp_path):
    """The DOM after parsing has the same elements: nothing was mended, moved or dropped."""
    file = tmp_path / "cohort.html"
    file.write_text(page(), encoding="utf-8")
    ours, theirs = Tags(page()), Tags(chromium(file))
    assert [tag for tag, _ in theirs.seen] == [tag for tag, _ in ours.seen]
    assert " ".join(theirs.text.split()) == " ".join(ours.text.split())


@pytest.mark.slow
@NEEDS_CHROMIUM
@pytest.mark.parametrize("scheme, ground", [("1", "light"), ("0", "dark")])
def test_a_browser_shows_it_light_or_dark_and_always_with_contrast(tmp_path, scheme, ground):
    file = tmp_path / "probed.html"
    without_policy = page().replace("default-src 'none'; style-src 'unsafe-inline'", "")
    file.write_text(without_policy.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    title = Tags(chromium(file, f"--blink-settings=preferredColorScheme={scheme}")).text.split("}", 1)[0] + "}"
    facts = json.loads(title[title.index('{"page"'):])
    brightness = sum(map(int, re.findall(r"\d+", facts["page"])[:3])) / 3
    assert brightness > 220 if ground == "light" else brightness < 60, f"the page is {facts['page']}"
    weak = [(what, round(value, 1)) for what, value in facts["contrasts"] if value < 4.5]
    assert len(facts["contrasts"]) > 50 and not weak, f"too little contrast: {weak[:5]}"
