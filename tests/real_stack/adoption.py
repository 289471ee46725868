"""Cases of adoption: the Python agent of 2019 and ours take over each other's kernels on Docker, while they run."""
import json
import signal
import urllib.request

import residue
import stack
from world import case, check, on

SERVER = '''import http.server, threading
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"service of the kernel")
threading.Thread(target=http.server.HTTPServer(("", 8080), Handler).serve_forever, daemon=True).start()
'''


def change_agent(world, to_python):
    """Ends one agent so that its kernels stay, and starts the other in its place."""
    check(world.stack.stop_agent(signal.SIGINT), 'the agent did not end within 30 s of SIGINT')
    world.forget_heartbeats()
    (world.stack.start_python_agent if to_python else world.stack.start_agent)()
    world.wait_heard()


def core(world, kernel):
    return world.execute(kernel, 'import os; print(sorted(os.sched_getaffinity(0)))').stdout


def service(world, kernel):
    """What the kernel's program answers on the host port of its service."""
    ports = json.loads(world.stack.sql("select service_ports from kernels where id = '{}'".format(world.row(kernel)[0])))
    port = [item['host_port'] for item in ports if item['name'] == 'jupyter'][0]
    return urllib.request.urlopen('http://127.0.0.1:{}/'.format(port), timeout=5).read()


def outlives_the_change(world, to_python):
    with world.session(resources={'cpu': 1, 'mem': '384m'}, envs={'GREETING': 'hello'}) as kernel:
        world.execute(kernel, 'x = 41\n' + SERVER)
        before = world.row(kernel)[0]
        change_agent(world, to_python)
        console = world.execute(kernel, 'print(x + 1)')
        check(console.stdout == '42\n' and world.row(kernel) == (before, 'RUNNING'), '{!r}; {}', console, world.row(kernel))
        check(service(world, kernel) == b'service of the kernel', 'the service port answers something else')
        with world.session(client_token='beside') as another:
            # its core and its host ports are not those of the one taken over
            check(core(world, another) != core(world, kernel), 'both on core {}', core(world, kernel))
            check(world.execute(another, 'print("new")').stdout == 'new\n', 'no new session')
        yield kernel
        kernel.destroy()
        world.wait_terminated(kernel)
    world.wait_slots_free()


def python_first(world):
    change_agent(world, to_python=True)


@on('docker')
@case
def a_kernel_of_the_python_agent_is_taken_over_while_it_runs(world):
    python_first(world)
    for kernel in outlives_the_change(world, to_python=False):
        world.execute(kernel, 'open("kept.txt", "w").write("here")')
        kernel.restart()
        console = world.execute(kernel, 'print(open("kept.txt").read(), "x" in globals())')
        check(console.stdout == 'here False\n', 'after a restart by the new agent: {!r}', console)
    left = residue.wait_for_nothing(world.stack, 10)
    check(not left, 'left behind:\n  {}', '\n  '.join(left))


@on('docker')
@case
def a_kernel_of_the_python_agent_that_ended_meanwhile_is_reported(world):
    python_first(world)
    with world.session() as kernel:
        check(world.stack.stop_agent(signal.SIGINT), 'the agent did not end within 30 s of SIGINT')
        world.engine.cli('kill', 'kernel.python.' + world.row(kernel)[0])
        world.stack.start_agent()
        world.wait_terminated(kernel, 40)
    world.wait_slots_free()
    left = residue.wait_for_nothing(world.stack, 10)
    check(not left, 'left behind:\n  {}', '\n  '.join(left))


@on('docker')
@case
def the_python_agent_takes_a_kernel_of_ours_back(world):
    if world.stack.agent.name != 'agent':
        change_agent(world, to_python=False)
    for _ in outlives_the_change(world, to_python=True):
        pass
    # of its own kernel, the one beside, it leaves the volume
    world.engine.cli('volume', 'prune', '--force')
    check(not world.engine.leftovers(), 'left behind: {}', world.engine.leftovers())
    change_agent(world, to_python=False)
