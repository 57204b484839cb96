"""kombu's own unit tests of its Redis transport, run against Sidestep's.

Run as `.venv/bin/python -m scripts.transport_proof [--stock | --left-out]` from the checkout. Fetches the source of the
installed kombu from the package index, takes the tests out of it and runs them with this transport's classes in the
place of kombu's, but for those of LEFT_OUT. `--stock` runs all against kombu's own instead; `--left-out` runs only
those that are left out, all of which shall fail. Exit status as pytest's; with `--left-out` 0 when none passed.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = "t/unit/transport/test_redis.py"
STAND_IN = "its stand-in for a client or a channel answers nothing that a fetch could read"
RETURNS = "it looks for the commands of kombu's restore, one message at a time; here one script returns many"
WAITS = "it looks for the BRPOP that kombu waits with; here a fetch and the doorbell wait"
SENTINEL = "Sentinel is not offered"

LEFT_OUT: Mapping[str, str] = {
    "test_Channel::test_sentinel_inherits_publish_batch_support": SENTINEL,
    "test_Channel::test_restore_by_tag_keeps_unacked_message_on_connection_error": RETURNS,
    "test_Channel::test_restore_by_tag_requeues_when_lookup_succeeds": RETURNS,
    "test_Channel::test_qos_restore_visible": RETURNS,
    "test_Channel::test_qos_restore_visible_interval_throttles": RETURNS,
    "test_Channel::test_qos_restore_visible_zero_interval_no_zerodivision": RETURNS,
    "test_Channel::test_qos_restore_visible_uses_zrange_byscore_rev": RETURNS,
    "test_Channel::test_qos_restore_visible_without_limit": RETURNS,
    "test_Channel::test_global_keyprefix_transaction": RETURNS,
    "test_Channel::test_global_keyprefix_restore_visible": RETURNS,
    "test_DisconnectRegistration::test_disconnect_preserves_another_channel": STAND_IN,
    "test_DisconnectRegistration::test_disconnect_preserves_other_mode": STAND_IN,
    "test_DisconnectRegistration::test_disconnect_then_reconnect_registers_new_socket": STAND_IN,
    "test_PausedBRPOP::test_paused_only_polling_wait_is_bounded": WAITS,
    "test_PausedBRPOP::test_credit_resumes_pending_brpop_without_sending_another[False-on_poll_start]": WAITS,
    "test_PausedBRPOP::test_credit_resumes_pending_brpop_without_sending_another[False-get]": WAITS,
    "test_PausedBRPOP::test_credit_resumes_pending_brpop_without_sending_another[True-get]": WAITS,
    "test_PausedBRPOP::test_hub_does_not_readd_paused_reader": WAITS,
    "test_PausedBRPOP::test_disconnect_clears_pause_before_reconnect": WAITS,
    "test_PausedBRPOP::test_late_disconnect_preserves_replacement_with_same_fd[True]": WAITS,
    "test_PausedBRPOP::test_poll_start_preserves_replacement_before_disconnect_callback": WAITS,
    "test_Redis::test_publish__get_redispyv3": STAND_IN,
    "test_Redis::test_publish__get_redispyv2": STAND_IN,
    "test_Redis::test_publish__consume": STAND_IN,
    "test_MultiChannelPoller::test_on_poll_start": WAITS,
    "test_MultiChannelPoller::test_get_no_actions": STAND_IN,
    "test_MultiChannelPoller::test_qos_reject": RETURNS,
    "test_MultiChannelPoller::test_qos_requeue": RETURNS,
    "test_MultiChannelPoller::test_get_brpop_qos_allow": WAITS,
    "test_MultiChannelPoller::test_get_brpop_qos_disallow": WAITS,
    "test_MultiChannelPoller::test_get_runs_after_read_callbacks": STAND_IN,
    "test_MultiChannelPoller::test_get_refreshes_binding_expiry_while_qos_disallows": STAND_IN,
    "test_MultiChannelPoller::test_get_listen": STAND_IN,
    "test_MultiChannelPoller::test_get_receives_ERR": STAND_IN,
    "test_MultiChannelPoller::test_get_receives_multiple": STAND_IN,
    "test_MultiChannelPoller::test_get_checks_brpop_health_when_idle": WAITS,
    "test_MultiChannelPoller::test_get_skips_brpop_health_on_events": WAITS,
}
"""By name, and why. Without a parameter all of a test's; what they are about is tried against a real server in
tests/test_transport.py."""


def source(folder: Path, package: str = "kombu") -> Path:
    """Where the source of the installed package lies now, without the package itself. Raises CalledProcessError."""
    wanted = ["--no-deps", "--no-binary", package, f"{package}=={version(package)}"]
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--dest", str(folder), *wanted], check=True)
    (packed,) = folder.glob(f"{package}-*.tar.gz")
    with tarfile.open(packed) as archive:
        # Only the tests: beside the package that is installed they must not meet another.
        inside = [each for each in archive.getmembers() if re.match(r"[^/]+/(t/|pyproject|setup\.cfg)", each.name)]
        archive.extractall(folder, inside, filter="data")
    (unpacked,) = (each for each in folder.glob(f"{package}-*") if each.is_dir())
    return unpacked


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """pytest on these tests, its words passed on."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--tb=short", "-W", "ignore", "-p", "no:cacheprovider", *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )


def main() -> None:
    """Fetch, run, and say in one line what was left out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--stock", action="store_true", help="all of them, against kombu's own")
    which.add_argument("--left-out", action="store_true", help="only those that are left out")
    asked = parser.parse_args()
    ours = ("-p", "scripts.as_kombus")
    with tempfile.TemporaryDirectory() as folder:
        tests = source(Path(folder))
        if asked.stock:
            done = run(tests, TESTS)
        elif asked.left_out:
            done = run(tests, *ours, *(f"{TESTS}::{name}" for name in LEFT_OUT))
        else:
            done = run(tests, *ours, TESTS, *(f"--deselect={TESTS}::{name}" for name in LEFT_OUT))
    sys.stdout.write(done.stdout if not asked.left_out else done.stdout.splitlines()[-1] + "\n")
    if asked.left_out:
        sys.exit(int(" passed" in done.stdout.splitlines()[-1] or done.returncode != 1))
    if not asked.stock:
        for reason in dict.fromkeys(LEFT_OUT.values()):
            print(f"left out, {sum(each == reason for each in LEFT_OUT.values())} names: {reason}")
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
