"""What lateness costs, against the rule written down, and its properties on random courses."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grading.cohort.late import DAY, Policy, Terms, in_zone, moment, settle, stamp

DUE = {"06": datetime(2027, 3, 1, 22, 59, tzinfo=UTC)}
policies = st.builds(
    Policy, st.integers(0, 96).map(lambda hours: timedelta(hours=hours)), st.floats(0, 1), st.floats(0, 1), st.integers(0, 6),
    st.none() | st.integers(0, 20).map(lambda days: days * DAY))
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
    more = replace(policy, tokens=policy.tokens + 1)
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
    one = settle(Policy(grace=2 * DAY, penalty=0.1, most=0.5), [(late, 80.0)])[0]
    assert (one.charged, one.score, one.days) == (charged, score, round(late / DAY, 4))


def test_tokens_pay_for_the_first_labs_late_days():
    settled = settle(Policy(penalty=0.1, tokens=3), [(2 * DAY, 50.0), (2 * DAY, 50.0), (DAY, 50.0)])
    assert [(one.tokens, one.charged, one.score) for one in settled] == [(2, 0, 50.0), (1, 1, 45.0), (0, 1, 45.0)]


@pytest.mark.parametrize(("late", "score"), [(7 * DAY, 56.0), (7 * DAY + timedelta(seconds=1), 0.0), (30 * DAY, 0.0)])
def test_after_the_cutoff_a_hand_in_is_worth_nothing_whatever_lateness_costs_at_most(late, score):
    assert settle(Policy(penalty=0.1, most=0.3, cutoff=7 * DAY), [(late, 80.0)])[0].score == score
    assert settle(Policy(penalty=0.1, most=0.3, tokens=99, cutoff=7 * DAY), [(late, 80.0)])[0].score == (80.0 if score else 0.0)


def test_a_lab_may_have_a_policy_of_its_own_and_the_tokens_are_the_terms():
    whole, own = Policy(penalty=0.1, tokens=1), Policy(grace=DAY, penalty=0.5, tokens=99)
    settled = settle(whole, [(2 * DAY, 100.0), (3 * DAY, 100.0), (2 * DAY, 100.0)], [None, own, None])
    assert [(one.tokens, one.charged, one.score) for one in settled] == [(1, 1, 90.0), (0, 2, 0.0), (0, 2, 80.0)]
    terms = Terms(whole, DUE, {}, {"06": own})
    assert Terms.from_json(terms.to_json()) == terms


def test_no_policy_is_no_penalty():
    assert settle(Policy(), [(9 * DAY, 50.0)])[0].score == 50.0


def test_a_policy_is_said_in_words():
    assert Policy().words() == "none"
    assert Policy(2 * DAY, 0.1, 0.5, 3, 7 * DAY).words() == (
        "2 days of grace; 10% a day, 50% at most; 3 tokens; nothing after 7 days")


@pytest.mark.parametrize(("text", "policy"), [
    ("", Policy()), ("grace=2d,penalty=10%/day,max=50%,tokens=3", Policy(2 * DAY, 0.1, 0.5, 3)),
    ("grace=36h", Policy(1.5 * DAY)), ("grace=30m, tokens=1", Policy(timedelta(minutes=30), tokens=1))])
def test_a_policy_as_older_journals_keep_it_means_the_same(text, policy):
    kept = json.dumps({"due": {"06": "2027-03-01T22:59:00Z"}, "extended": [], "policy": text})
    assert Terms.from_json(kept) == Terms(policy, DUE)
    again = json.loads(Terms(policy, DUE).to_json())
    assert again.keys() == {"due", "extended", "policy"} and Terms.from_json(json.dumps(again)) == Terms(policy, DUE)


def test_an_older_course_reads_what_is_written_now():
    written = Terms(Policy(2 * DAY, 0.125, 0.5, 3, 7 * DAY), DUE).to_json()
    assert json.loads(written)["policy"] == "grace=48h,penalty=12.5%/day,max=50%,tokens=3"
    assert json.loads(written)["cutoff"] == 7 * 86400


def test_times_are_kept_in_utc_and_need_a_zone():
    assert stamp(moment("2027-03-01T23:59:30.5+01:00")) == "2027-03-01T22:59:30Z"
    with pytest.raises(ValueError, match="has no time zone: write 2027-03-01T23:59Z"):
        moment("2027-03-01T23:59")
    with pytest.raises(ValueError, match="'tomorrow' is no time"):
        moment("tomorrow")


@pytest.mark.parametrize("text", ["2027-03-01", "2027-03-01T00:00"])
def test_a_time_without_a_zone_is_refused_with_what_can_be_written(text):
    with pytest.raises(ValueError, match="has no time zone: write 2027-03-01T00:00Z for UTC, or such as 2027-03-01T00:00.01:00"):
        moment(text)
    assert stamp(moment("2027-03-01T00:00Z")) == "2027-03-01T00:00:00Z"
    with pytest.raises(ValueError, match=r"'2027-03-01\+01:00' is no time"):  # Python would take it for one in the night
        moment("2027-03-01+01:00")


def test_a_time_that_does_not_say_its_zone_is_of_the_terms():
    berlin = ZoneInfo("Europe/Berlin")
    assert stamp(moment("2027-03-01 23:59", berlin)) == "2027-03-01T22:59:00Z"
    assert stamp(moment("2027-07-01 23:59", berlin)) == "2027-07-01T21:59:00Z", "summer time"
    assert stamp(moment("2027-02-08 23:58:12 -0500", berlin)) == "2027-02-09T04:58:12Z", "it says its own"
    assert stamp(moment("2027-10-31T02:30", berlin)) == "2027-10-31T01:30:00Z", "the clock shows it twice: the later"
    assert stamp(moment("Monday, 1 February 2027, 10:00 PM", berlin)) == "2027-02-01T21:00:00Z", "Moodle's"
    assert stamp(moment("Mon Feb 1 22:00:00 2027 -0500", berlin)) == "2027-02-02T03:00:00Z", "git's"
    with pytest.raises(ValueError, match="2027-03-28 02:30:00 does not exist in Europe/Berlin: summer time begins"):
        in_zone(datetime(2027, 3, 28, 2, 30), berlin)


def test_terms_say_how_late_and_survive_being_written():
    terms = Terms(Policy(1 * DAY, 0.1, 0.5, 2, 9 * DAY), DUE, {("bob", "06"): DUE["06"] + 3 * DAY})
    assert Terms.from_json(terms.to_json()) == terms
    assert terms.late("alice", "06", "2027-03-02T22:59:00Z") == DAY
    assert terms.late("bob", "06", "2027-03-02T22:59:00Z") == timedelta()
    assert terms.late("alice", "07", "2027-03-02T22:59:00Z") == timedelta(), "a lab without a date is never late"
    assert terms.late("alice", "06", None) == timedelta()
