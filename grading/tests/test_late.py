"""What lateness costs, against the rule written down, and its properties on random courses."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grading.cohort.late import DAY, Policy, Terms, extensions, moment, read_due, read_policy, settle, stamp

LABS = {"06": "06", "6": "06", "lab07": "07"}
DUE = {"06": datetime(2027, 3, 1, 22, 59, tzinfo=UTC)}
policies = st.builds(
    Policy, st.integers(0, 96).map(lambda hours: timedelta(hours=hours)), st.floats(0, 1), st.floats(0, 1), st.integers(0, 6))
scores = st.floats(0, 100)
delays = st.integers(0, 20 * 24 * 60).map(lambda minutes: timedelta(minutes=minutes))
courses = st.lists(st.tuples(delays, scores), min_size=1, max_size=6)


@given(policies, courses, st.data())
def test_handing_in_later_never_gives_more_for_any_lab(policy, labs, data):
    which = data.draw(st.integers(0, len(labs) - 1))
    later = list(labs)
    later[which] = (labs[which][0] + data.draw(delays), labs[which][1])
    before, after = settle(policy, labs), settle(policy, later)
    assert after[which].score <= before[which].score
    assert all(one.score <= other.score for one, other in zip(after, before, strict=True)), (
        "a later hand-in leaves no more tokens for others")


@given(policies, courses)
def test_tokens_are_used_in_order_and_never_more_than_there_are(policy, labs):
    settled, left = settle(policy, labs), policy.tokens
    for one, (late, score) in zip(settled, labs, strict=True):
        days = len(range(0, max(0, int((late - policy.grace).total_seconds())), 86400))  # begun, counted one by one
        assert one.tokens == min(left, days) and one.charged == days - one.tokens
        left -= one.tokens
        assert left >= 0 and 0 <= one.score <= round(score, 2)


@given(policies, courses)
def test_another_token_never_costs_anybody_anything(policy, labs):
    more = Policy(policy.grace, policy.penalty, policy.most, policy.tokens + 1)
    assert all(one.score <= other.score for one, other in zip(settle(policy, labs), settle(more, labs), strict=True))


@given(courses)
def test_on_time_costs_nothing_under_any_policy(labs):
    on_time = [(timedelta(), score) for _, score in labs]
    assert [one.score for one in settle(Policy(penalty=1.0), on_time)] == [round(score, 2) for _, score in labs]


@pytest.mark.parametrize(("late", "charged", "score"), [
    (timedelta(), 0, 80.0),
    (2 * DAY, 0, 80.0),  # the grace's last second
    (2 * DAY + timedelta(seconds=1), 1, 72.0),
    (3 * DAY, 1, 72.0),
    (4 * DAY, 2, 64.0),
    (30 * DAY, 28, 40.0),  # half is the most it costs
])  # fmt: skip
def test_a_day_that_has_begun_after_the_grace_is_charged_whole(late, charged, score):
    one = settle(read_policy("grace=2d,penalty=10%/day,max=50%"), [(late, 80.0)])[0]
    assert (one.charged, one.score, one.days) == (charged, score, round(late / DAY, 4))


def test_tokens_pay_for_the_first_labs_late_days():
    settled = settle(read_policy("penalty=10%/day,tokens=3"), [(2 * DAY, 50.0), (2 * DAY, 50.0), (DAY, 50.0)])
    assert [(one.tokens, one.charged, one.score) for one in settled] == [(2, 0, 50.0), (1, 1, 45.0), (0, 1, 45.0)]


@pytest.mark.parametrize("text", ["grace=2", "penalty=10%", "penalty=110%/day", "max=half", "tokens=-1", "tokens=1.5", "fee=3",
                                  "grace=1d,grace=2d", "2d"])
def test_a_part_of_the_policy_that_is_not_understood_is_named(text):
    with pytest.raises(ValueError, match=r"--late: .*grace=2d,penalty=10%/day,max=50%,tokens=3"):
        read_policy(text)


def test_no_policy_is_no_penalty():
    assert settle(read_policy(""), [(9 * DAY, 50.0)])[0].score == 50.0


def test_times_are_kept_in_utc_and_need_a_zone():
    assert stamp(moment("2027-03-01T23:59:30.5+01:00")) == "2027-03-01T22:59:30Z"
    with pytest.raises(ValueError, match="has no time zone: write 2027-03-01T23:59Z"):
        moment("2027-03-01T23:59")
    with pytest.raises(ValueError, match="'tomorrow' is no time"):
        moment("tomorrow")


def test_due_dates_name_the_lab_that_is_not_there_or_comes_twice():
    assert read_due(["lab07=2027-03-01T00:00Z"], LABS) == {"07": datetime(2027, 3, 1, tzinfo=UTC)}
    with pytest.raises(ValueError, match="there is no lab '9'"):
        read_due(["9=2027-03-01T00:00Z"], LABS)
    with pytest.raises(ValueError, match="lab 06 twice"):
        read_due(["06=2027-03-01T00:00Z", "6=2027-03-01T00:00Z"], LABS)


def test_extensions_are_days_after_the_due_date_or_a_date():
    rows = [("line 2", {"student": "alice", "lab": "6", "days": "1.5", "until": ""}),
            ("line 3", {"student": "bob", "lab": "06", "until": "2027-03-09T12:00+00:00"})]
    assert extensions(rows, DUE, LABS) == {("alice", "06"): datetime(2027, 3, 3, 10, 59, tzinfo=UTC),
                                           ("bob", "06"): datetime(2027, 3, 9, 12, tzinfo=UTC)}


@pytest.mark.parametrize(("row", "said"), [
    ({"lab": "06"}, "give days or until"),
    ({"lab": "06", "days": "1", "until": "2027-03-09T12:00Z"}, "give days or until"),
    ({"lab": "06", "days": "-1"}, "'-1' is no number of days"),
    ({"lab": "06", "until": "2027-02-09T12:00Z"}, "before the lab is due"),
    ({"lab": "06", "until": "2027-03-09"}, "has no time zone"),
    ({"lab": "lab07", "days": "1"}, "lab 07 has no --due to extend"),
    ({"lab": "12", "days": "1"}, "there is no lab '12'"),
])  # fmt: skip
def test_an_extension_that_cannot_be_used_is_an_error_naming_its_row(row, said):
    with pytest.raises(ValueError, match=f"extensions.csv line 7: .*{said}"):
        extensions([("extensions.csv line 7", {"student": "alice", **row})], DUE, LABS)


def test_one_student_has_one_extension_for_a_lab():
    rows = [(f"line {line}", {"student": "alice", "lab": "06", "days": "1"}) for line in (2, 3)]
    with pytest.raises(ValueError, match="line 3: alice has an extension for lab 06 already"):
        extensions(rows, DUE, LABS)


def test_terms_say_how_late_and_survive_being_written():
    terms = Terms("penalty=10%/day", DUE, {("bob", "06"): DUE["06"] + 3 * DAY})
    assert Terms.from_json(terms.to_json()) == terms
    assert terms.late("alice", "06", "2027-03-02T22:59:00Z") == DAY
    assert terms.late("bob", "06", "2027-03-02T22:59:00Z") == timedelta()
    assert terms.late("alice", "07", "2027-03-02T22:59:00Z") == timedelta(), "a lab without a date is never late"
    assert terms.late("alice", "06", None) == timedelta()
