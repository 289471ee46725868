"""Cases: the node as the manager sees it; code, programs and files in a session."""
import contextlib
import json
import os
import tempfile

from ai.backend.client.exceptions import BackendAPIError

import stack
from world import case, check, write



# ---- the node as the manager sees it

@case
def the_manager_shows_the_agent_alive_with_its_slots(world):
    world.wait_alive()
    fields = ('id', 'status', 'addr', 'region', 'available_slots', 'occupied_slots')
    items = world.client.Agent.list_with_limit(10, 0, 'ALIVE', fields)['items']
    check(len(items) == 1, 'agents: {}', items)
    agent, slots = items[0], json.loads(items[0]['available_slots'])
    check(agent['id'] == 'i-' + os.uname().nodename, 'instance id: {}', agent['id'])
    check(agent['addr'] == 'tcp://127.0.0.1:{}'.format(world.stack.agent_port), 'address: {}', agent['addr'])
    check(float(slots['cpu']) == 2 * len(os.sched_getaffinity(0)), 'slots: {}', slots)  # 19.03: two shares a core
    total = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    check(total * 0.5 < float(slots['mem']) <= total, 'memory slot {} of {}', slots['mem'], total)


@case
def a_session_of_an_image_from_the_registry_runs_code(world):
    with world.session() as kernel:
        check(kernel.created, 'the session was there before')
        console = world.execute(kernel, 'print("hello")')
        check(console.stdout == 'hello\n' and console.statuses[-1] == 'finished', '{!r}', console)
    world.wait_slots_free()


# ---- query mode

@case
def the_state_of_the_interpreter_lives_between_queries(world):
    with world.session() as kernel:
        world.execute(kernel, 'import sys\nanswer = 42\ndef double(n):\n    return n * 2')
        console = world.execute(kernel, 'print(double(answer))')
        check(console.stdout == '84\n', '{!r}', console)


@case
def an_exception_is_shown_and_the_interpreter_goes_on(world):
    with world.session() as kernel:
        console = world.execute(kernel, 'print("before")\n1 / 0\nprint("after")')
        check('before' in console.stdout and 'after' not in console.stdout, '{!r}', console)
        check('ZeroDivisionError' in console.stdout + console.stderr, '{!r}', console)
        check(world.execute(kernel, 'print("alive")').stdout == 'alive\n', 'the interpreter is gone')


@case
def standard_error_is_told_from_standard_output(world):
    with world.session() as kernel:
        console = world.execute(kernel, 'import sys; print("out"); print("err", file=sys.stderr)')
        check(console.stdout == 'out\n' and console.stderr == 'err\n', '{!r}', console)


@case
def a_program_asks_for_input_and_gets_it(world):
    with world.session() as kernel:
        console = world.execute(kernel, 'a = input("first? ")\nb = input("second? ")\nprint(a + "/" + b)', inputs=['one', 'zwei ü'])
        check(console.statuses.count('waiting-input') == 2, '{!r}', console)
        check('first? ' in console.stdout and 'one/zwei ü' in console.stdout, '{!r}', console)


@case
def a_long_run_gives_its_output_as_it_goes_and_then_finishes(world):
    with world.session() as kernel:
        console = world.execute(kernel, 'import time\nfor i in range(5):\n    print("step", i)\n    time.sleep(1)')
        check('continued' in console.statuses, '{!r}', console)
        check(console.stdout == ''.join('step {}\n'.format(i) for i in range(5)), '{!r}', console)


@case
def an_interrupt_stops_a_running_program(world):
    with world.session() as kernel:
        pressed = []

        def press():
            if not pressed:
                pressed.append(kernel.interrupt())
        console = world.execute(kernel, 'import time\nwhile True:\n    time.sleep(0.1)', on_continued=press)
        check(pressed and 'KeyboardInterrupt' in console.stdout + console.stderr, '{!r}', console)
        check(world.execute(kernel, 'print("alive")').stdout == 'alive\n', 'the interpreter is gone')


@case
def a_large_output_arrives_whole(world):
    with world.session() as kernel:
        console = world.execute(kernel, 'for i in range(20000):\n    print("line %06d of a long output" % i)')
        lines = console.stdout.splitlines()
        check(len(lines) == 20000 and lines[-1] == 'line 019999 of a long output', '{} lines, last {!r}', len(lines), lines[-1:])


# ---- batch mode and files

@case
def batch_mode_builds_and_runs_uploaded_files(world):
    with world.session() as kernel, tempfile.TemporaryDirectory() as folder:
        main = write(folder, 'main.py', b'import helper, sys\nprint(helper.words()); sys.exit(int(open("status").read()))\n')
        helper = write(folder, 'helper.py', b'def words():\n    return "from the helper"\n')
        kernel.upload([main, helper], basedir=folder)
        console = world.execute(kernel, mode='batch', opts={
            'build': 'echo building; echo 0 > status', 'exec': 'python3 main.py'})
        check('from the helper\n' in console.stdout and console.exit_code == 0, '{!r}', console)
        check('build-finished' in console.statuses, '{!r}', console)


@case
def a_failing_batch_program_gives_its_exit_code(world):
    with world.session() as kernel:
        console = world.execute(kernel, mode='batch', opts={'exec': 'echo out; echo err >&2; exit 7'})
        check(console.exit_code == 7 and 'out\n' in console.stdout and 'err\n' in console.stderr, '{!r}', console)


@case
def files_go_up_are_listed_and_come_down(world):
    content = bytes(range(32, 127)) * 20
    with world.session() as kernel, tempfile.TemporaryDirectory() as folder:
        kernel.upload([write(folder, 'top.txt', b'top\n'), write(folder, 'a/b/data.txt', content)], basedir=folder)
        console = world.execute(kernel, 'import os\nprint(os.path.getsize("a/b/data.txt"), open("top.txt").read().strip())')
        check(console.stdout == '{} top\n'.format(len(content)), '{!r}', console)
        listing = json.loads(kernel.list_files('.')['files'])
        check({'top.txt', 'a'} <= {item['filename'] for item in listing}, 'listing: {}', listing)
        check([item['size'] for item in listing if item['filename'] == 'top.txt'] == [4], 'listing: {}', listing)
        world.execute(kernel, 'open("result.txt", "w").write("made inside\\n")')
        target = os.path.join(folder, 'down')
        os.mkdir(target)
        kernel.download(['result.txt'], dest=target)
        with open(os.path.join(target, 'result.txt')) as stream:
            check(stream.read() == 'made inside\n', 'the downloaded file differs')


@case
def an_upload_does_not_leave_the_work_folder(world):
    from ai.backend.client.request import AttachedFile
    import ai.backend.client.kernel as module
    with world.session() as kernel, tempfile.TemporaryDirectory() as folder:
        source = write(folder, 'evil', b'x')

        class Escaping(AttachedFile):
            def __new__(cls, name, stream, content_type):
                return AttachedFile.__new__(AttachedFile, '../../../escaped', stream, content_type)
        module.AttachedFile, original = Escaping, AttachedFile
        try:
            with contextlib.suppress(BackendAPIError):
                kernel.upload([source], basedir=folder)
        finally:
            module.AttachedFile = original
        scratch = world.stack.path('scratch')
        outside = [base for base, _, names in os.walk(world.stack.folder) if 'escaped' in names and '/work' not in base[len(scratch):]]
        check(not outside, 'the upload landed in {}', outside)
