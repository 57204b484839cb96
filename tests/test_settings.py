"""What a worker is told, through its environment."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.app import make_app
from tasks.settings import ENV_PREFIX, PRESETS, Settings, SettingsError, from_env

PASSWORD = "hunter2"

words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1)
settings = st.builds(
    Settings,
    broker=st.sampled_from(["redis://:p%20w@host:1/2", "rediss://host", "redis://[::1]:6380/0"]),
    key_prefix=words,
    queue=words,
    preset=st.sampled_from(sorted(PRESETS)),
    prefetch=st.none() | st.integers(0, 10**6),
    acks_late=st.none() | st.booleans(),
    switch_interval_s=st.none() | st.floats(0, 1, exclude_min=True),
    tape_dir=st.none() | words,
    ready_fd=st.none() | st.integers(0, 10**6),
)


@given(settings)
def test_settings_survive_the_environment(told: Settings):
    assert from_env(told.to_env()) == told


def test_what_is_not_set_keeps_its_default():
    assert from_env({}) == Settings()
    assert from_env({"SIDESTEP_PREFETCH": "", "PREFETCH": "3", "sidestep_prefetch": "3"}) == Settings()


@given(settings)
def test_every_variable_of_ours_is_recognisable(told: Settings):
    assert all(name.startswith(ENV_PREFIX) and name.isupper() for name in told.to_env())


@pytest.mark.parametrize(
    ("text", "meant"), [("1", True), ("true", True), ("Yes", True), ("ON", True), ("0", False), ("off", False)]
)
def test_a_flag_may_be_spelled_in_the_usual_ways(text: str, meant: bool):
    assert from_env({"SIDESTEP_ACKS_LATE": text}).acks_late is meant


@pytest.mark.parametrize(
    ("name", "text", "named"),
    [
        ("SIDESTEP_PREFETCH", "many", "SIDESTEP_PREFETCH"),
        ("SIDESTEP_PREFETCH", "1.5", "SIDESTEP_PREFETCH"),
        ("SIDESTEP_PREFETCH", "two\nlines", "SIDESTEP_PREFETCH"),
        ("SIDESTEP_ACKS_LATE", "maybe", "SIDESTEP_ACKS_LATE"),
        ("SIDESTEP_SWITCH_INTERVAL_S", "5ms", "SIDESTEP_SWITCH_INTERVAL_S"),
        ("SIDESTEP_READY_FD", "stdout", "SIDESTEP_READY_FD"),
        # Readable, but of no use: named as the setting is, since an argument can be as wrong.
        ("SIDESTEP_PREFETCH", "-1", "prefetch"),
        ("SIDESTEP_SWITCH_INTERVAL_S", "0", "switch_interval_s"),
        ("SIDESTEP_SWITCH_INTERVAL_S", "nan", "switch_interval_s"),
        ("SIDESTEP_SWITCH_INTERVAL_S", "2", "switch_interval_s"),
        ("SIDESTEP_PRESET", "turbo\nmode", "preset"),
        ("SIDESTEP_BROKER", "kafka://host", "broker"),
        ("SIDESTEP_BROKER", "localhost:6379", "broker"),
        ("SIDESTEP_BROKER", "redis://host:port/0", "broker"),
        ("SIDESTEP_BROKER", "redis://[::1/0", "broker"),
    ],
)
def test_a_bad_variable_is_named_in_one_line(name: str, text: str, named: str):
    with pytest.raises(SettingsError, match=named) as refusal:
        from_env({name: text})
    assert "\n" not in str(refusal.value)


def test_an_unknown_preset_is_told_which_there_are():
    with pytest.raises(SettingsError, match="default, fast, lossless"):
        Settings(preset="turbo")


@pytest.mark.parametrize(
    "url",
    [
        f"kafka://user:{PASSWORD}@host",
        f"redis://:{PASSWORD}@host:port/0",
        f"redis://host:{PASSWORD}/0",
        f"redis://:{PASSWORD}@[::1/0",
        f"{PASSWORD}@host",
        f"http://host/?password={PASSWORD}",
    ],
)
def test_a_password_in_a_bad_broker_url_is_in_no_message(url: str):
    with pytest.raises(SettingsError) as refusal:
        from_env({"SIDESTEP_BROKER": url})
    # Not in those of the errors behind it either: a traceback prints them all
    error: BaseException | None = refusal.value
    while error:
        assert PASSWORD not in str(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


@pytest.mark.parametrize(
    "other",
    [{"SIDESTEP_PREFETCH": "many"}, {"SIDESTEP_PREFETCH": "-1"}, {"SIDESTEP_PRESET": "x"}, {"SIDESTEP_READY_FD": "x"}],
)
def test_another_bad_variable_does_not_tell_the_password(other: dict[str, str]):
    with pytest.raises(SettingsError) as refusal:
        from_env({"SIDESTEP_BROKER": f"redis://:{PASSWORD}@host/0", **other})
    assert PASSWORD not in str(refusal.value)


def test_results_are_for_a_redis_alone():
    assert Settings(broker="redis://host", results=True).on_redis
    assert not Settings(broker="amqps://host/v").on_redis
    with pytest.raises(SettingsError, match="results are kept in a Redis"):
        Settings(broker=f"amqp://user:{PASSWORD}@host", results=True)


def test_a_rabbitmq_is_asked_for_none_of_the_options_of_a_redis():
    app = make_app(Settings(broker="amqp://host/v", preset="lossless"))
    assert app.conf.broker_transport_options == {}
    assert app.conf.task_acks_late
    assert app.connection_for_write().transport.driver_type == "amqp"


def test_a_rabbitmq_survives_the_environment_too():
    told = Settings(broker="amqp://me:p@host/v", preset="lossless", acks_late=True)
    assert from_env(told.to_env()) == told
