"""Cases: the engine's daemon is killed, stopped, frozen. Not for an engine without a daemon."""
import signal
import threading

from ai.backend.client.exceptions import BackendAPIError

import stack
from world import case, check, on, refused


def heartbeats_go_on(world):
    """Waits for two heartbeats from now on."""
    for _ in range(2):
        before = world.last_seen()
        stack.wait_for('a heartbeat', 10, lambda: world.last_seen() != before)


def lives_on(world, kernel, before):
    """The kernel answers with its state, and the manager never saw it end."""
    console = world.execute(kernel, 'print(x + 1)')
    check(console.stdout == '42\n' and world.row(kernel) == (before, 'RUNNING'), '{!r}; {}', console, world.row(kernel))


def dies_and_comes_back(world):
    """The daemon is killed under a kernel: heartbeats go on, a create is refused in time with words; all is found again."""
    with world.session() as kernel:
        world.execute(kernel, 'x = 41')
        before = world.row(kernel)[0]
        world.engine.kill()
        heartbeats_go_on(world)
        error = refused(lambda: world.client.Kernel.get_or_create('python', client_token='daemon-is-dead'), 500)
        check(world.engine.name in str(error.data).lower(), 'the error does not name the engine: {}', error.data)
        yield
        lives_on(world, kernel, before)
        with world.session(client_token='after-the-daemon') as another:
            check(world.execute(another, 'print("new")').stdout == 'new\n', 'no new session')
    world.wait_slots_free()


def run_with_start(world, *options):
    steps = dies_and_comes_back(world)
    next(steps)
    world.engine.start(*options)
    next(steps, None)


@on('containerd')
@case
def kernels_outlive_a_containerd_that_is_killed_and_started_again(world):
    run_with_start(world)


@on('docker')
@case
def kernels_outlive_a_dockerd_with_live_restore_that_is_killed_and_started_again(world):
    world.engine.stop()
    world.engine.start('--live-restore')
    run_with_start(world, '--live-restore')
    world.engine.stop()
    world.engine.start()


def ends_with_its_daemon(world, end):
    """Without live-restore a dockerd ends its containers, when it stops or when the next one starts: the manager hears of it."""
    with world.session() as kernel:
        end()
        heartbeats_go_on(world)
        world.engine.start()
        world.wait_terminated(kernel, 40)
    world.wait_slots_free()
    with world.session(client_token='after-the-daemon') as another:
        check(world.execute(another, 'print("new")').stdout == 'new\n', 'no new session')


@on('docker')
@case
def kernels_of_a_killed_dockerd_without_live_restore_are_reported_when_it_comes_back(world):
    ends_with_its_daemon(world, world.engine.kill)


@on('docker')
@case
def kernels_of_a_dockerd_that_is_restarted_without_live_restore_are_reported(world):
    ends_with_its_daemon(world, world.engine.stop)


@on('docker', 'containerd')
@case
def a_daemon_stopped_and_started_while_the_agent_was_away_is_found(world):
    world.stack.stop_agent(signal.SIGKILL)
    world.engine.stop()
    world.engine.start()
    world.stack.start_agent()
    world.wait_heard()
    with world.session() as kernel:
        check(world.execute(kernel, 'print("new")').stdout == 'new\n', 'no new session')


@on('docker', 'containerd')
@case
def a_frozen_daemon_stops_neither_heartbeats_nor_kernels_and_a_create_ends_in_time(world):
    with world.session() as kernel:
        world.execute(kernel, 'x = 41')
        before, answers = world.row(kernel)[0], []

        def create_another():
            with world.other_client() as client:
                try:
                    answers.append(client.Kernel.get_or_create('python', client_token='while-frozen').created)
                except BackendAPIError as error:
                    answers.append(str(error.data))
        create = threading.Thread(target=create_another, daemon=True)
        world.engine.freeze()
        try:
            create.start()
            lives_on(world, kernel, before)
            heartbeats_go_on(world)
        finally:
            world.engine.thaw()
        create.join(60)
        # It waited for the daemon, or was told what does not answer.
        check(answers == [True] or answers and world.engine.name in answers[0], 'the create while the daemon was frozen: {}', answers)
        if answers == [True]:
            world.client.Kernel('while-frozen').destroy()
        lives_on(world, kernel, before)
        with world.session(client_token='after-the-frost') as another:
            check(world.execute(another, 'print("new")').stdout == 'new\n', 'no new session')
    world.wait_slots_free()
