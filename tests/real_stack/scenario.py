"""The real scenario: the agent under an unmodified 19.03.3 manager, driven through the HTTP API with the client library of its time.

    scenario.py --manager-venv DIR --agent FILE --python-tar FILE --busybox-tar FILE --logs DIR [--runtime ENGINE] [NAME...]
    scenario.py … --runtime docker --agent-venv DIR --krunner-tar FILE   the cases of adoption

Prints one line for each case (`ok ENGINE.NAME` or `FAILED ENGINE.NAME`, reasons below it) and exits with 1 if any failed. With names,
runs only those. Python 3.6, in the client's environment, as root.
"""
import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback

import engines
import stack
import runs  # noqa: F401  (each registers its cases, in this order)
import sessions  # noqa: F401
import failures  # noqa: F401
import daemons  # noqa: F401
import adoption  # noqa: F401
import ending
from world import CASES, TooLong, World

CASE_SECONDS = 120


def run_case(world, function):
    """Runs one case under its time limit; returns the reason of a failure."""
    def too_long(_number, _frame):
        signal.alarm(60)  # for what the case does to clean up
        raise TooLong('longer than {} s'.format(CASE_SECONDS))
    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(CASE_SECONDS)
    world.new_client()
    try:
        if function is not ending.nothing_is_left_on_the_machine:
            world.wait_alive()
        function(world)
        return None
    except TooLong:
        world.new_client()
        return traceback.format_exc(limit=-3)
    except Exception:  # noqa: B902  (a case may fail in any way)
        return traceback.format_exc(limit=-3)
    finally:
        signal.alarm(0)
        world.client.close()


def prepare(running, options):
    """Services, manager, images; returns the images' names."""
    running.start_services()
    if options.agent_venv:
        # where the Python agent looks for containers' control groups
        running.start_engine('--cgroup-parent', '/docker')
        running.engine.import_krunner_env(options.krunner_tar)
        running.agent_venv = options.agent_venv
    else:
        running.start_engine()
    running.fill()
    images = {}
    for name, tar in (('python', options.python_tar), ('busybox', options.busybox_tar)):
        with open(os.path.join(stack.REPOSITORY, 'images', name, 'image.json')) as stream:
            description = json.load(stream)
        images[name], _ = running.push(description, tar)
    lost = dict(description, name='lablup/lost')
    images['lost'], digest = running.push(lost, options.busybox_tar)
    running.manager_cli('etcd', 'rescan-images')
    running.manager_cli('etcd', 'alias', 'python', images['python'])
    stack.registry.forget(running.registry_url, lost['name'], digest)
    running.start_manager()
    return images


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ('manager-venv', 'agent', 'python-tar', 'busybox-tar', 'logs'):
        parser.add_argument('--' + name, required=True)
    parser.add_argument('--runtime', default='youki', choices=sorted(engines.ENGINES))
    for name in ('agent-venv', 'krunner-tar', 'suite'):
        parser.add_argument('--' + name)
    parser.add_argument('names', nargs='*')
    options = parser.parse_args()
    suite = options.suite or ('adoption' if options.agent_venv else options.runtime)
    cases = [function for function in CASES if options.runtime in getattr(function, 'engines', engines.ENGINES)
             and (function.__module__ in ('adoption', 'ending') if options.agent_venv else function.__module__ != 'adoption')]
    unknown = set(options.names) - {function.__name__ for function in cases}
    if unknown:
        parser.error('no such case: ' + ', '.join(sorted(unknown)))
    os.makedirs(options.logs, exist_ok=True)
    folder = tempfile.mkdtemp(prefix='bai-stack.')
    running = stack.Stack(folder, options.logs, options.manager_venv, options.agent, engines.ENGINES[options.runtime])
    failed = 0
    try:
        images = prepare(running, options)
        running.start_agent()
        world = World(running, images)
        for function in cases:
            if options.names and function.__name__ not in options.names:
                continue
            start = time.monotonic()
            reason = run_case(world, function)
            print('{} {}.{} ({:.1f} s)'.format('FAILED' if reason else 'ok', suite, function.__name__, time.monotonic() - start),
                  flush=True)
            if reason:
                failed += 1
                print('    ' + reason.rstrip().replace('\n', '\n    '), flush=True)
                if not running.agent.alive() and function is not CASES[-2] and function is not CASES[-1]:
                    print('    the agent had ended; it is started again. Its last words:\n' + running.agent.tail(6), flush=True)
                    running.start_agent()
    finally:
        running.down()
        shutil.rmtree(folder, ignore_errors=True)
    sys.stdout.flush()
    os._exit(1 if failed else 0)  # the clients' threads need not be waited for


if __name__ == '__main__':
    main()
