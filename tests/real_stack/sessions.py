"""Cases: a session's life, its limits and folders; what cannot be done."""
import os
import signal

import residue
import stack
from world import case, check, refused, write



@case
def what_batch_programs_print_is_in_the_logs(world):
    with world.session() as kernel:
        world.execute(kernel, mode='batch', opts={'exec': 'echo for the log; echo and an error >&2'})
        logs = kernel.get_logs()['result']['logs'].splitlines()
        check('for the log' in logs and 'and an error' in logs, 'logs: {!r}', logs)


@case
def a_restart_forgets_state_but_keeps_files(world):
    with world.session() as kernel:
        world.execute(kernel, 'kept = 1\nopen("kept.txt", "w").write("here")')
        before = world.row(kernel)[0]
        kernel.restart()
        check(world.row(kernel) == (before, 'RUNNING'), 'after the restart: {}', world.row(kernel))
        console = world.execute(kernel, 'print(open("kept.txt").read(), "kept" in globals())')
        check(console.stdout == 'here False\n', '{!r}', console)


@case
def limits_of_cpu_and_memory_hold_inside_the_container(world):
    with world.session(resources={'cpu': 1, 'mem': '384m'}) as kernel:
        check(world.occupied() == {'cpu': 1, 'mem': 384 << 20}, 'occupied: {}', world.occupied())
        check(world.execute(kernel, 'import os; print(len(os.sched_getaffinity(0)))').stdout == '1\n', 'more than one core')
        limit = residue.memory_limit(world.init_process(kernel))
        check(limit == 384 << 20, 'memory limit: {}', limit)
    world.wait_slots_free()


@case
def the_environment_given_at_creation_is_seen_inside(world):
    with world.session(envs={'GREETING': 'hello there'}) as kernel:
        console = world.execute(kernel, 'import os; print(os.environ["GREETING"], os.getcwd(), os.getuid())')
        check(console.stdout == 'hello there /home/work 1000\n', '{!r}', console)


@case
def a_virtual_folder_is_shared_with_the_node(world):
    world.client.VFolder.create('shared', 'local')
    folder = os.path.join(world.stack.path('vfroot', 'local'), os.listdir(world.stack.path('vfroot', 'local'))[0])
    os.chmod(folder, 0o777)
    write(folder, 'from-node', b'node')
    with world.session(mounts=['shared']) as kernel:
        console = world.execute(kernel, 'print(open("shared/from-node").read()); written = open("shared/from-kernel", "w").write("kernel")')
        check(console.stdout == 'node\n', '{!r}', console)
        with open(os.path.join(folder, 'from-kernel')) as stream:
            check(stream.read() == 'kernel', 'what the kernel wrote differs')


@case
def two_sessions_live_beside_each_other(world):
    with world.session() as first, world.session() as second:
        world.execute(first, 'who = "first"; open("mark", "w").write(who)')
        world.execute(second, 'import os; print("who" in globals(), os.path.exists("mark"))')
        console = world.execute(second, 'print("who" in globals(), os.path.exists("mark"))')
        check(console.stdout == 'False False\n', '{!r}', console)
        check(world.execute(first, 'print(who)').stdout == 'first\n', 'the first one lost its state')
        check(world.row(first)[0] != world.row(second)[0], 'the same kernel')
    world.wait_slots_free()


@case
def destroying_a_session_is_seen_by_the_manager_and_frees_its_slots(world):
    kernel = world.client.Kernel.get_or_create('python')
    check(world.occupied()['cpu'] == 1, 'occupied: {}', world.occupied())
    check('stats' in kernel.destroy(), 'the answer has no statistics')
    world.wait_terminated(kernel)
    world.wait_slots_free()
    used = world.stack.sql("select concurrency_used from keypairs where access_key = '{}'".format(stack.ACCESS_KEY))
    check(used == '0', 'sessions counted for the key: {}', used)


@case
def a_kernel_that_ends_by_itself_is_reported(world):
    with world.session() as kernel:
        os.kill(world.init_process(kernel), signal.SIGKILL)
        world.wait_terminated(kernel)
    world.wait_slots_free()


# late in the order: the agent looks for images once a minute
@case
def the_manager_knows_that_the_agent_has_the_image(world):
    name = world.images['python']
    agent = world.stack.sql('select id from agents')
    stack.wait_for('image {} is reported'.format(name), 90, lambda: world.stack.redis('sismember', name, agent, db=3) == '1')


# ---- what cannot be done

@case
def an_unknown_image_is_refused(world):
    refused(lambda: world.client.Kernel.get_or_create('no-such-image:1'), 400, 404)


@case
def too_many_resources_are_refused(world):
    world.wait_alive()
    refused(lambda: world.client.Kernel.get_or_create('python', resources={'cpu': 4096, 'mem': '512m'}), 400, 503)
    check(not any(world.occupied().values()), 'occupied: {}', world.occupied())


@case
def an_image_that_the_registry_lost_fails_the_create_and_leaves_nothing(world):
    before = residue.processes(world.stack)
    error = refused(lambda: world.client.Kernel.get_or_create(world.images['lost'], client_token='lost-image'), 500)
    check(world.images['lost'] in str(error.data), 'the error does not name the image: {}', error.data)
    world.wait_slots_free()
    check(residue.processes(world.stack) == before, 'processes left: {}', residue.processes(world.stack))
    check(os.listdir(world.stack.path('scratch')) == [], 'scratch left: {}', os.listdir(world.stack.path('scratch')))
