"""What lateness costs, against the rule written down, and its properties on random courses."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grading.cohort.late import DAY, HOUR, Policy, Terms, in_zone, moment, settle, shown, stamp

DUE = {"06": datetime(2027, 3, 1, 22, 59, tzinfo=UTC)}
policies = st.builds(
    Policy, st.integers(0, 96).map(lambda hours: timedelta(hours=hours)), st.floats(0, 1), st.floats(0, 1), st.integers(0, 6),
    st.none() | st.integers(0, 20).map(lambda days: days * DAY), st.sampled_from(["day", "hour"]))
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
        over = range(0, max(0, int((late - policy.grace).total_seconds())), 3600)  # the hours begun, counted one by one
        days = [hour // 86400 for hour in over]
        assert one.tokens == min(left, len(set(days)))
        unpaid = [(hour, day) for hour, day in zip(over, days, strict=True) if day >= one.tokens]
        assert one.charged == (len(unpaid) if policy.unit == "hour" else len({day for _, day in unpaid}))
        assert one.unit == policy.unit
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


@pytest.mark.parametrize(("late", "charged", "score"), [
    (timedelta(), 0, 80.0),
    (timedelta(minutes=15), 0, 80.0),  # the grace's last second
    (timedelta(minutes=15, seconds=1), 1, 79.2),
    (timedelta(minutes=75), 1, 79.2),
    (timedelta(minutes=75, seconds=1), 2, 78.4),
    (timedelta(hours=10, minutes=15), 10, 72.0),
    (30 * DAY, 720, 40.0),  # half is the most it costs
])  # fmt: skip
def test_an_hour_that_has_begun_after_the_grace_is_charged_whole(late, charged, score):
    one = settle(Policy(timedelta(minutes=15), 0.01, 0.5, unit="hour"), [(late, 80.0)])[0]
    assert (one.charged, one.score, one.unit) == (charged, score, "hour")


def test_a_token_pays_for_the_first_24_hours_that_are_charged():
    hourly = Policy(penalty=0.01, tokens=1, unit="hour")
    settled = settle(hourly, [(20 * HOUR, 100.0), (2 * HOUR, 100.0)])
    assert [(one.tokens, one.charged, one.score) for one in settled] == [(1, 0, 100.0), (0, 2, 98.0)]
    assert settle(hourly, [(25 * HOUR, 100.0)])[0].charged == 1


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


def test_a_policy_by_the_hour_survives_being_written_and_is_said_in_words():
    hourly = Policy(timedelta(minutes=15), 0.015, 0.5, 1, DAY, "hour")
    terms = Terms(hourly, DUE, {}, {"07": replace(hourly, unit="day")}, ZoneInfo("America/New_York"))
    assert Terms.from_json(terms.to_json()) == terms
    assert hourly.words() == "15 minutes of grace; 1.5% an hour, 50% at most; 1 token; nothing after 1 day"


def test_a_zone_that_this_machine_does_not_know_is_named_with_the_way_out():
    kept = Terms(zone=ZoneInfo("Europe/Berlin")).to_json().replace("Berlin", "Berln")
    with pytest.raises(ValueError, match="no such IANA time zone.*pip install tzdata"):
        Terms.from_json(kept)


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


# a day is one by the wall clock, an hour is 60 minutes

BERLIN = ZoneInfo("Europe/Berlin")


def lateness_in_berlin(due: datetime, unit: str):
    terms = Terms(Policy(penalty=0.01, unit=unit), {"06": due}, zone=BERLIN)

    def charged(when: datetime) -> int:
        return settle(terms.policy, [(terms.late("ada", "06", stamp(when)), 100.0)])[0].charged

    return charged


@pytest.mark.parametrize(("due", "hours_of_the_day_after"), [
    (datetime(2027, 3, 27, 23, 59, tzinfo=BERLIN), 23),  # summer time begins on the 28th
    (datetime(2027, 10, 30, 23, 59, tzinfo=BERLIN), 25),  # and ends on the 31st
    (datetime(2027, 6, 1, 23, 59, tzinfo=BERLIN), 24),
])
def test_the_same_hour_a_day_after_the_deadline_is_one_day_late_for_any_days_length(due, hours_of_the_day_after):
    next_day = datetime(due.year, due.month, due.day, 23, 59, tzinfo=BERLIN) + DAY  # by the wall clock
    assert stamp(next_day) == stamp(due.astimezone(UTC) + hours_of_the_day_after * HOUR)
    days, hours = lateness_in_berlin(due, "day"), lateness_in_berlin(due, "hour")
    second = timedelta(seconds=1)
    assert [days(when.astimezone(UTC) + second) for when in (due, next_day, next_day + DAY)] == [1, 2, 3]
    assert [days(when) for when in (due, next_day, next_day + DAY)] == [0, 1, 2]
    assert hours(next_day) == hours_of_the_day_after and hours(next_day.astimezone(UTC) + second) == hours_of_the_day_after + 1
    assert Terms(Policy(), {"06": due}, zone=BERLIN).late("ada", "06", stamp(next_day)) == DAY


@given(st.sampled_from(["day", "hour"]), st.integers(0, 4 * 24 * 12),
       st.lists(st.integers(0, 6 * 24 * 12), min_size=2, max_size=6))
def test_later_is_never_less_late_whatever_the_clock_does_meanwhile(unit, due_after, delays):
    for before in (datetime(2027, 3, 26, tzinfo=UTC), datetime(2027, 10, 29, tzinfo=UTC)):
        due = before + due_after * timedelta(minutes=5)
        terms = Terms(Policy(unit=unit), {"06": due}, zone=BERLIN)
        late = [terms.late("ada", "06", stamp(due + delay * timedelta(minutes=5))) for delay in sorted(delays)]
        assert late == sorted(late)
        assert all(bool(how_late) == bool(delay) for how_late, delay in zip(late, sorted(delays), strict=True))


def test_a_hand_in_after_the_deadline_is_late_though_the_clock_shows_an_earlier_hour():
    due = datetime(2027, 10, 31, 2, 50, tzinfo=BERLIN)  # the first time that the clock shows it
    assert lateness_in_berlin(due, "day")(due.astimezone(UTC) + 20 * timedelta(minutes=1)) == 1


# what people read


@pytest.mark.parametrize(("zone", "text"), [
    ("Europe/Berlin", "2027-03-01 23:59 CET"), ("America/New_York", "2027-03-01 17:59 EST"),
    ("Asia/Kolkata", "2027-03-02 04:29 IST"), ("America/Sao_Paulo", "2027-03-01 19:59 -03"), ("UTC", "2027-03-01 22:59 UTC")])
def test_a_time_is_shown_by_the_clock_of_its_zone_with_its_name(zone, text, monkeypatch):
    monkeypatch.setenv("TZ", "Pacific/Auckland")
    assert shown(DUE["06"], ZoneInfo(zone)) == shown("2027-03-01T22:59:00Z", ZoneInfo(zone)) == text


def test_a_time_shows_its_seconds_where_it_has_any_and_which_of_two_same_hours_it_is():
    assert shown("2027-03-01T22:59:59Z", BERLIN) == "2027-03-01 23:59:59 CET"
    assert shown("2027-03-01T22:59:59Z", None) == "2027-03-01 22:59:59 UTC"
    assert [shown(when, BERLIN) for when in ("2027-10-31T00:30:00Z", "2027-10-31T01:30:00Z")] == [
        "2027-10-31 02:30 CEST", "2027-10-31 02:30 CET"]
