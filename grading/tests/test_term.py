"""term.toml: what it says is what holds, and every mistake in it is named with its key, its value and the way out."""

import re
import shutil
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from grading.cli import term as command
from grading.cli.app import app
from grading.cohort.journal import Attempt, Journal
from grading.cohort.late import DAY, Policy, Terms, settle, stamp
from grading.cohort.overrides import Override
from grading.cohort.term import Due, Extension, Term, TermError, find_term, read_term
from grading.judge.report import CheckResult, Report
from grading.judge.seeds import PUBLIC_SECRET
from labs.harness.catalog import all_labs

WHOLE = """
name = "2027S"
secret = "secret.txt"
journal = "j.sqlite"
time_zone = "Europe/Berlin"

[submissions]
folder = "handed in"
times = "times.csv"

[roster]
file = "roster.csv"
columns = { student = "SIS Login ID", name = "Student", section = "Section" }

[labs]
06 = { due = 2027-03-26T23:59:00, sections = { B = 2027-03-30 } }
7 = { due = 2027-06-01T12:00:00-04:00 }
lab05 = {}

[late]
grace_days = 0.5
percent_per_day = 10
most_percent = 50
tokens = 3
cutoff_days = 7

[grading]
seed_mode = "cohort"
isolation = "limits"
predictions = false
seconds_per_check = 20
seconds_per_submission = 600

[[extensions]]
student = "ada"
lab = "06"
days = 2

[[extensions]]
student = "ben"
lab = "06"
days = 1

[[extensions]]
student = "ben"
lab = "7"
until = 2027-06-03T08:00:00

[[overrides]]
student = "ada"
lab = "06"
todo = 5
points = 13
comment = "Shown in the office."
"""
ROSTER = (
    "Student,ID,SIS Login ID,Section\n"
    "    Points Possible,,,\n"
    '"Lovelace, Ada",101,ada,A\n"Babbage, Ben",102,ben,B\n"König, Cem",103,cem,B\n"Student, Test",199,4f2a,A\n')


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "secret.txt").write_text("0123456789abcdef\n")
    (tmp_path / "roster.csv").write_text(ROSTER, encoding="utf-8")
    return tmp_path


def read(home: Path, text: str) -> Term:
    (home / "term.toml").write_text(text, encoding="utf-8")
    return read_term(home / "term.toml")


def mistakes(home: Path, text: str) -> list[str]:
    with pytest.raises(TermError) as raised:
        read(home, text)
    first, *rest = str(raised.value).splitlines()
    assert first == f"{home / 'term.toml'} has {len(rest)} mistake{'s' if len(rest) > 1 else ''}:"
    return [line.strip() for line in rest]


def test_a_whole_file_says_what_it_says(home):
    term = read(home, WHOLE)
    assert (term.name, term.secret, term.journal, term.submissions, term.times) == (
        "2027S", "0123456789abcdef", home / "j.sqlite", home / "handed in", home / "times.csv")
    assert (term.seed_mode, term.isolation, term.predictions, term.seconds, term.submission_seconds) == (
        "cohort", "limits", False, 20, 600)
    assert term.policy == Policy(DAY / 2, 0.1, 0.5, 3, 7 * DAY)
    assert term.labs == {
        "05": Due(), "06": Due(datetime(2027, 3, 26, 22, 59, tzinfo=UTC), {"B": datetime(2027, 3, 30, 21, 59, 59, tzinfo=UTC)}),
        "07": Due(datetime(2027, 6, 1, 16, tzinfo=UTC))}
    assert term.extensions[0] == Extension("ada", "06", 2.0)
    assert term.extensions[2] == Extension("ben", "07", None, datetime(2027, 6, 3, 6, tzinfo=UTC))
    assert term.overrides == (Override("ada", "06", "Shown in the office.", 5, 13.0),)
    assert {student: row["name"] for student, row in term.roster.students.items()} == {
        "ada": "Lovelace, Ada", "ben": "Babbage, Ben", "cem": "König, Cem"}, "neither the points nor the test student"
    assert "0123456789abcdef" not in repr(term)


def test_a_section_has_its_own_date_and_extensions_count_from_it_by_the_wall_clock(home):
    terms = read(home, WHOLE).terms()
    assert terms.due == {"06": datetime(2027, 3, 26, 22, 59, tzinfo=UTC), "07": datetime(2027, 6, 1, 16, tzinfo=UTC)}
    assert terms.extended == {
        ("ada", "06"): datetime(2027, 3, 28, 21, 59, tzinfo=UTC),  # 23:59 there, though summer time has begun
        ("ben", "06"): datetime(2027, 3, 31, 21, 59, 59, tzinfo=UTC),
        ("cem", "06"): datetime(2027, 3, 30, 21, 59, 59, tzinfo=UTC),
        ("ben", "07"): datetime(2027, 6, 3, 6, tzinfo=UTC)}


@pytest.mark.parametrize(("until", "wanted"), [
    ("2027-03-27T02:30:00", datetime(2027, 3, 28, 1, 30, tzinfo=UTC)),  # 02:30 of the 28th is skipped: 03:30
    ("2027-10-30T02:30:00", datetime(2027, 10, 31, 1, 30, tzinfo=UTC)),  # 02:30 of the 31st comes twice: the second
])
def test_an_extension_into_an_hour_that_is_skipped_or_comes_twice_is_the_later(home, until, wanted):
    term = read(home, f'time_zone = "Europe/Berlin"\n[labs]\n06 = {{ due = {until} }}\n'
                '[[extensions]]\nstudent = "ada"\nlab = "06"\ndays = 1\n')
    assert term.terms().extended == {("ada", "06"): wanted}


@pytest.mark.parametrize(("old", "new", "said"), [
    ('name = "2027S"', "name = 2027", 'name = 2027: it has to be text in "quotation marks"'),
    ('"secret.txt"', '"none.txt"', 'secret = "none.txt": there is no file '),
    ("journal =", "jurnal =", "jurnal: there is no such key; is journal meant?"),
    ("grace_days", "grase_days", "late.grase_days: there is no such key; is grace_days meant?"),
    ("due = 2027-03-26T23:59:00", "late = { tokens = 1 }, due = 2027-03-26T23:59:00",
     "labs.06.late.tokens: there is no such key; there are grace_days, grace_minutes, percent_per_day, "
     "percent_per_hour, most_percent, cutoff_days"),
    ("tokens = 3", "tokns = 3", "late.tokns: there is no such key"),
    ("tokens = 3", "tokens = 1.5", "late.tokens = 1.5: it has to be a whole number"),
    ("tokens = 3", "tokens = -1", "late.tokens = -1: it has to be a whole number from 0 to 1000"),
    ("grace_days = 0.5", 'grace_days = "2d"', 'late.grace_days = "2d": it has to be a number'),
    ("grace_days = 0.5", "grace_days = -1", "late.grace_days = -1: it has to be a number from 0 to 1000"),
    ("percent_per_day = 10", "percent_per_day = 110", "late.percent_per_day = 110: it has to be a number from 0 to 100"),
    ("percent_per_day = 10", "percent_per_day = true", "late.percent_per_day = true: it has to be a number"),
    ("most_percent = 50", 'most_percent = "half"', 'late.most_percent = "half": it has to be a number'),
    ("percent_per_day = 10", "percent_per_hour = 110", "late.percent_per_hour = 110: it has to be a number from 0 to 100"),
    ("percent_per_day = 10", "percent_per_day = 10\npercent_per_hour = 1",
     "late.percent_per_hour = 1: give percent_per_day or percent_per_hour, and not both"),
    ("percent_per_day = 10", "percent_per_huor = 1", "late.percent_per_huor: there is no such key; is percent_per_hour meant?"),
    ("grace_days = 0.5", "grace_minutes = -1", "late.grace_minutes = -1: it has to be a number from 0 to 100000"),
    ("grace_days = 0.5", "grace_days = 0\ngrace_minutes = 15",
     "late.grace_minutes = 15: give grace_days or grace_minutes, and not both"),
    ("due = 2027-03-26T23:59:00", "late = { percent_per_day = 1, percent_per_hour = 1 }, due = 2027-03-26T23:59:00",
     "labs.06.late.percent_per_hour = 1: give percent_per_day or percent_per_hour, and not both"),
    ("Europe/Berlin", "Europe/Berln", 'time_zone = "Europe/Berln": there is no such IANA time zone; write Europe'),
    ('"roster.csv"', '"people.csv"', 'roster.file = "people.csv": there is no file '),
    ('"SIS Login ID"', '"login"', "roster: roster.csv has no column login; its first line is 'Student,ID,SIS Login ID,Section'"),
    ('"SIS Login ID"', '"Student"', "roster: roster.csv is a gradebook of Canvas, whose column Student has names"),
    ('name = "Student"', 'nam = "Student"', "roster.columns.nam: there is no such key; is name meant?"),
    ("sections = { B", "sections = { C", "labs.06.sections.C = 2027-03-30: the roster has no section 'C'; it has A, B"),
    ("06 = {", "16 = {", "labs.16: there is no lab '16'; there are 01, 02,"),
    ("7 = {", "lab06 = {", "labs.lab06: lab 06 is there twice"),
    ("due = 2027-03-26T23:59:00", 'due = "2027-03-26"',
     'labs.06.due = "2027-03-26": it has to be a time such as 2027-03-01T23:59:00, without quotation marks'),
    ("due = 2027-03-26T23:59:00", "due = 2027-03-28T02:30:00",
     "labs.06.due = 2027-03-28 02:30:00: 2027-03-28 02:30:00 does not exist in Europe/Berlin"),
    ("due = 2027-03-26T23:59:00", "due = 9999-12-31", "labs.06.due = 9999-12-31: that year cannot be meant"),
    ("due = 2027-03-26T23:59:00, ", "", "labs.06.sections: give due, too, for students in none of these sections"),
    ("due = 2027-03-26", "dew = 2027-03-26", "labs.06.dew: there is no such key; is due meant?"),
    ('"cohort"', '"all"', 'grading.seed_mode = "all": it is student or cohort'),
    ('"limits"', '"docker"', 'grading.isolation = "docker": it is namespaces, limits or none'),
    ("predictions = false", "predictions = 0", "grading.predictions = 0: it has to be true or false"),
    ("seconds_per_check = 20", "seconds_per_check = 0", "grading.seconds_per_check = 0: it has to be a number from 1"),
    ('student = "ben"\nlab = "7"', 'student = "bent"\nlab = "7"',
     'extensions, the third: student = "bent": the roster has no such student; is ben meant?'),
    ('lab = "7"', 'lab = "05"', 'extensions, the third: lab = "05": lab 05 has no due date to extend; [labs.05] gives it'),
    ('lab = "7"', 'lab = "12"', "extensions, the third: lab = \"12\": there is no lab '12'"),
    ('lab = "7"', 'lab = "6"', 'extensions, the third: student = "ben": ben has an extension for lab 06 already'),
    ('lab = "7"', "lab = 7", 'extensions, the third: lab = 7: it has to be text such as "06"'),
    ("until = 2027-06-03T08:00:00", "until = 2027-05-03T08:00:00",
     "until = 2027-05-03 08:00:00: that is before the lab is due, 2027-06-01 18:00 CEST"),
    ("until = 2027-06-03T08:00:00", "", "extensions, the third: days: give days or until, and not both"),
    ("days = 2", "days = 2\nuntil = 2027-06-03T08:00:00", "extensions, the first: days = 2: give days or until, and not both"),
    ("days = 2", "days = -1", "extensions, the first: days = -1: it has to be a number from 0 to 1000"),
    ("todo = 5", "todo = 9", "overrides, the first: todo = 9: lab 06 has the TODOs 1, 2, 3, 4, 5, 6, and \"predictions\""),
    ("points = 13", "points = 13\nbonus = 1",
     "overrides, the first: points = 13: give points, which replace what was earned, or bonus"),
    ("points = 13", "bonus = 1", "overrides, the first: todo = 5: a bonus is for the whole lab; leave todo out"),
    ('"Shown in the office."', '" "', 'overrides, the first: comment = " ": say why: the student reads it'),
    ('[[overrides]]\nstudent = "ada"', "[[overrides]]", "overrides, the first: student: name the student"),
    ("[[overrides]]", "[[overrides]]\nlab = '06'\ncheck = 'a_freed_reqest_is_forgotten'\ncomment = 'x'\n[[overrides]]",
     'check = "a_freed_reqest_is_forgotten": lab 06 has no such check; is a_freed_request_is_forgotten meant?'),
    ('[[overrides]]\nstudent = "ada"\nlab = "06"\ntodo = 5\npoints = 13',
     '[[overrides]]\nstudent = "ada"\nlab = "06"\ncheck = "a_freed_request_is_forgotten"',
     "overrides, the first: student: there is no such key"),
    ("[[overrides]]", WHOLE.partition("[[overrides]]")[1] + WHOLE.partition("[[overrides]]")[2] + "\n[[overrides]]",
     'overrides, the second: student = "ada": ada has been decided already; leave one of the two'),
    ("[[overrides]]", "overrides = 3\n[overides]", "overides"),
])
def test_a_mistake_is_named_with_its_key_its_value_and_the_way_out(home, old, new, said):
    assert WHOLE.count(old), old
    text = WHOLE.replace(old, new, 1)
    if new.startswith("overrides = 3"):
        text = "overrides = 3\n" + WHOLE.partition("[[overrides]]")[0]
        said = "overrides = 3: it has to be an array of tables, [[overrides]]"
    found = mistakes(home, text)
    assert any(said in one for one in found), "\n".join(found)
    assert len(found) <= 2, "one mistake is not said three times\n" + "\n".join(found)


def test_all_mistakes_are_said_at_once(home):
    text = WHOLE.replace("tokens = 3", "tokns = 3").replace('"cohort"', '"all"').replace("days = 2", "days = -1")
    assert [one.partition(":")[0] for one in mistakes(home, text)] == [
        "late.tokns", 'grading.seed_mode = "all"', "extensions, the first"]


def test_a_lab_has_the_terms_policy_where_it_does_not_say_otherwise(home):
    term = read(home, WHOLE.replace("due = 2027-03-26T23:59:00", "late = { percent_per_day = 20 }, due = 2027-03-26T23:59:00"))
    assert term.terms().policies == {"06": Policy(DAY / 2, 0.2, 0.5, 3, 7 * DAY)} and term.terms().policy.penalty == 0.1
    record(home / "j.sqlite", "cem")
    (home / "j.sqlite").rename(home / "k.sqlite")
    with command.open_journal(read(home, 'journal = "k.sqlite"\ntime_zone = "UTC"\n[labs]\n06 = { due = 2027-03-25, '
                                   "late = { percent_per_day = 20 } }\n[late]\npercent_per_day = 10\n")) as base:
        assert base.latest()[0].final_score == 9.6, "two days begun, 20 % each"


def test_hours_are_charged_if_term_or_lab_says_so_and_a_missing_key_stays_the_terms(home):
    hourly = WHOLE.replace("percent_per_day = 10", "percent_per_hour = 2").replace("grace_days = 0.5", "grace_minutes = 15")
    quarter = timedelta(minutes=15)
    assert read(home, hourly).policy == Policy(quarter, 0.02, 0.5, 3, 7 * DAY, "hour")
    due = "due = 2027-03-26T23"
    own = {said: read(home, text.replace(due, f"late = {{ {said} }}, {due}")).terms().policies["06"] for text, said in (
        (hourly, "most_percent = 30"), (hourly, "percent_per_day = 10"), (WHOLE, "percent_per_hour = 1"),
        (WHOLE, "grace_minutes = 15"), (hourly, "grace_days = 1"))}
    assert own == {"most_percent = 30": Policy(quarter, 0.02, 0.3, 3, 7 * DAY, "hour"),
                   "percent_per_day = 10": Policy(quarter, 0.1, 0.5, 3, 7 * DAY),
                   "percent_per_hour = 1": Policy(DAY / 2, 0.01, 0.5, 3, 7 * DAY, "hour"),
                   "grace_minutes = 15": Policy(quarter, 0.1, 0.5, 3, 7 * DAY),
                   "grace_days = 1": Policy(DAY, 0.02, 0.5, 3, 7 * DAY, "hour")}


@pytest.mark.parametrize(("late", "zone", "deadline", "costs"), [
    # Berlin's clock goes from 02:00 CET to 03:00 CEST on 28 March 2027: due at 23:59 on the 26th, with two days more on the 28th
    ("percent_per_hour = 1", "Europe/Berlin", "2027-03-28T23:59:00+02:00", {0: 0, 1: 1, 3600: 1, 3601: 2, 100_000: 28}),
    ("percent_per_hour = 1\ngrace_minutes = 15", "Europe/Berlin", "2027-03-28T23:59:00+02:00",
     {900: 0, 901: 1, 4500: 1, 4501: 2}),
    ("percent_per_hour = 1\nmost_percent = 5", "Europe/Berlin", "2027-03-28T23:59:00+02:00", {18_000: 5, 18_001: 5, 10**6: 5}),
    ("percent_per_hour = 1\ncutoff_days = 1", "Europe/Berlin", "2027-03-28T23:59:00+02:00", {86_400: 24, 86_401: 100}),
    ("percent_per_day = 10", "Europe/Berlin", "2027-03-28T23:59:00+02:00", {0: 0, 1: 10, 86_400: 10, 86_401: 20}),
    # in New York it was the 14th: the clock is four hours behind UTC before and after
    ("percent_per_hour = 1", "America/New_York", "2027-03-28T23:59:00-04:00", {0: 0, 1: 1, 3600: 1, 3601: 2}),
])
def test_lateness_begins_a_second_after_a_deadline_extended_across_a_clock_change(
        home, late, zone, deadline, costs):
    term = read(home, f'time_zone = "{zone}"\n[labs]\n06 = {{ due = 2027-03-26T23:59:00 }}\n[late]\n{late}\n'
                '[[extensions]]\nstudent = "ada"\nlab = "06"\ndays = 2\n')
    terms = Terms.from_json(term.terms().to_json())
    due = datetime.fromisoformat(deadline)
    assert terms.deadline("ada", "06") == due

    def cost(seconds: int) -> float:
        handed_in = terms.late("ada", "06", stamp(due + timedelta(seconds=seconds)))
        return 100 - settle(terms.policy, [(handed_in, 100.0)])[0].score

    assert {seconds: cost(seconds) for seconds in costs} == costs and cost(-1) == cost(-10**6) == 0


def test_times_need_a_zone_for_the_whole_term_or_their_own(home):
    assert mistakes(home, "[labs]\n06 = { due = 2027-03-01T23:59:00 }\n") == [
        "labs.06.due = 2027-03-01 23:59:00: it has no time zone: give time_zone for the whole term, or write "
        "2027-03-01T23:59:00+01:00"]
    assert read(home, "[labs]\n06 = { due = 2027-03-01T23:59:00Z }\n").labs["06"].all == datetime(2027, 3, 1, 23, 59, tzinfo=UTC)


def test_what_is_no_toml_and_a_file_that_is_not_there_say_so(home):
    with pytest.raises(TermError, match=r"term.toml is no TOML: .*line 2"):
        read(home, "name = 'x'\nday = yesterday\n")
    with pytest.raises(TermError, match="none.toml cannot be read: .*; python -m grading init writes one"):
        read_term(home / "none.toml")


def test_without_a_file_there_are_defaults_and_a_term_toml_in_the_folder_is_found(home, monkeypatch):
    monkeypatch.chdir(home)
    assert find_term(None) == Term()
    (home / "term.toml").write_text('journal = "mine.sqlite"\n')
    assert find_term(None).journal == Path("mine.sqlite")
    (home / "other.toml").write_text('journal = "yours.sqlite"\n')
    assert find_term(home / "other.toml").journal == home / "yours.sqlite"


# init


def test_init_writes_a_valid_commented_file_and_a_secret_that_only_its_owner_reads(home, monkeypatch):
    folder = home / "course"
    folder.mkdir()
    monkeypatch.chdir(folder)
    command.init()
    term = find_term(None)
    assert len(term.secret) == 32 and (home / "term-secret.txt").stat().st_mode & 0o077 == 0
    assert (term.labs, term.policy, term.seed_mode, term.predictions, term.seconds) == (
        {lab.id: Due() for lab in all_labs()}, Policy(), "student", True, 30)
    bare = [line for line in Path("term.toml").read_text(encoding="utf-8").splitlines() if line and "#" not in line]
    assert not bare, bare
    with pytest.raises(ValueError, match=r"term.toml is there already; it stays as it is"):
        command.init()


def test_every_example_in_the_file_that_init_writes_is_valid(home, monkeypatch):
    """Each comment that is a setting is made one."""
    (home / "course").mkdir()
    monkeypatch.chdir(home / "course")
    command.init()
    text = Path("term.toml").read_text(encoding="utf-8")
    shown = re.sub(r"^# (?=\w+ = |\[)", "", text, flags=re.MULTILINE).replace("06 = { }", "#")
    Path("term.toml").write_text(shown, encoding="utf-8")
    Path("roster.csv").write_text(
        "Student,ID,SIS User ID,SIS Login ID,Email,Section,Group\nA,1,11,ada,a@b,B,\nB,2,12,bob,b@b,A,\n", encoding="utf-8")
    term = find_term(None)
    assert (len(term.extensions), len(term.overrides), term.name, term.policy.cutoff) == (1, 2, "2027S", 7 * DAY)
    assert term.times == Path("times.csv") and term.roster.students["ada"]["lms_id"] == "1"


# the journal remembers


def record(journal: Path, student: str = "ada") -> None:
    checks = (CheckResult(1, "a", 12.0, 12.0, False), CheckResult(5, "b", 13.0, 4.0, False, "wrong"))
    with Journal(journal, create=True) as base:
        base.hand_in([Attempt(student, "06", "d", "2027-03-27T22:59:00Z", "times")])
        base.record("k", Report(student, "06", "d", "none", "seed", {"checks": "v"}, checks))


def test_commands_bring_the_journal_up_to_date_and_another_journal_is_left_as_it_is(home):
    term = read(home, WHOLE.replace("tokens = 3", "tokens = 0").replace('student = "ada"\nlab = "06"\ndays = 2',
                                                                        'student = "cem"\nlab = "06"\ndays = 2'))
    record(home / "j.sqlite")
    record(home / "other.sqlite")
    with command.open_journal(term) as base:
        entry, = base.latest()
        assert (entry.report.score, entry.score, entry.final_score) == (16, 25, 22.5), "half a day after the grace: 10 %"
    with command.open_journal(term, home / "other.sqlite") as base:
        assert base.terms() == Terms() and base.overrides() == []
    with command.open_journal(Term(journal=home / "j.sqlite")) as base:
        assert base.latest() == [entry], "without a file it stays what was said last"
    with command.open_journal(read(home, "journal = 'j.sqlite'")) as base:
        assert base.latest()[0].final_score == 16, "what was taken out of the file does not hold any more"


def test_a_journal_of_an_older_course_opens_and_means_the_same(tmp_path):
    record(tmp_path / "old.sqlite")
    with sqlite3.connect(tmp_path / "old.sqlite") as base:
        base.execute("DROP TABLE texts")
        base.execute("INSERT INTO facts (name, value) VALUES ('terms', ?)", (
            '{"due": {"06": "2027-03-26T22:59:00Z"}, "extended": [], "policy": "penalty=10%/day"}',))
    with Journal(tmp_path / "old.sqlite") as base:
        assert base.latest()[0].final_score == 14.4 and base.latest()[0].late_days == 1
        base.keep({"d": {"starter.py": b"x = 1\n"}})
        assert base.files("d") == {"starter.py": b"x = 1\n"} and base.files("e") is None


def test_status_says_dates_in_the_terms_zone_and_what_was_decided(home):
    read(home, WHOLE)
    record(home / "j.sqlite")
    done = CliRunner().invoke(app, ["status", "--term-file", str(home / "term.toml")])
    said = done.output
    assert done.exit_code == 0, done.exception
    assert "late policy: 0.5 days of grace; 10% a day, 50% at most; 3 tokens; nothing after 7 days" in said
    assert "lab 06 is due at 2027-03-26 23:59 CET; 3 students have a deadline of their own" in said
    assert "override: ada lab 06: The instructor set TODO 5 to 13 points: Shown in the office." in said


def test_a_secret_is_public_only_if_none_is_named(home):
    assert read(home, "").secret == PUBLIC_SECRET
    (home / "secret.txt").write_text("short")
    assert "a term secret has 16 or more" in mistakes(home, 'secret = "secret.txt"')[0]


# what a batch needs of it


def invoke(*words: object) -> None:
    done = CliRunner().invoke(app, [str(word) for word in words])
    if done.exception:
        raise done.exception


@pytest.mark.parametrize(("text", "said"), [
    ("", "which labs. --labs 06,07 names them, or .labs. in term.toml"),
    ("[labs]\n06 = { due = 2027-03-01T23:59:00Z }", r"lab 06 has a due date, and nothing says when submissions were handed in: "
     r"in .*term.toml, .submissions. times = .times.csv. names a CSV"),
    ("[labs]\n06 = {}", "where are the submissions. Name their folder, or in term.toml"),
    ("[labs]\n06 = {}\n[submissions]\nfolder = 'none'", "there is no folder of submissions .*none"),
    ("jurnal = 1", "term.toml has 1 mistake"),
])
def test_a_batch_says_what_it_still_has_to_be_told(home, text, said):
    (home / "term.toml").write_text(text)
    with pytest.raises(ValueError, match=said):
        invoke("batch", "--term-file", home / "term.toml")


def test_an_extension_without_hand_in_and_an_override_without_result_are_reported(home):
    from grading.cli.batch import _unknown_students, _without_result
    from grading.cohort.batch import Plan
    from grading.cohort.roster import Cohort
    from grading.judge.grader import Settings
    from labs.harness.catalog import find_lab

    record(home / "j.sqlite", "zoe")
    term = read(home, WHOLE)
    plan = Plan({"06": find_lab("06")}, Settings(level="none"), {"06": {}})
    with command.open_journal(term) as base:
        assert [(line.kind, line.student, line.text) for line in _without_result(base, plan)] == [
            ("override", "ada", "there is no result that could be overridden")]
    without = read(home, WHOLE.replace('file = "roster.csv"', "").replace(", sections = { B = 2027-03-30 }", ""))
    assert [(line.kind, line.student) for line in _unknown_students(without, Cohort())] == [
        ("extension", "ada"), ("extension", "ben"), ("extension", "ben")]
    assert _unknown_students(term, Cohort()) == [], "the roster has them"


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed, and a term's tag is git's")
def test_a_term_file_given_as_the_name_of_a_term_is_told_apart(home):
    from grading.edition.at_tag import run_at
    from labs.harness.catalog import LabError

    with pytest.raises(LabError, match="There is no tag term/term.toml .* To name the file of a term: --term-file term.toml"):
        run_at("term.toml", ["status"], home)
