"""The last two cases: the agent ends with its kernels, and nothing is left."""
import signal

import residue
import stack
from world import case, check



@case
def a_terminated_agent_destroys_its_kernels(world):
    kernel = world.client.Kernel.get_or_create('python')
    check(world.stack.stop_agent(signal.SIGTERM), 'the agent did not end')
    check(world.stack.agent.child.returncode == 0, 'exit status {}', world.stack.agent.child.returncode)
    world.wait_terminated(kernel)
    world.wait_slots_free()
    stack.wait_for('the manager shows the agent TERMINATED', 20, lambda: world.agent_status() == 'TERMINATED')


@case
def nothing_is_left_on_the_machine(world):
    left = residue.wait_for_nothing(world.stack, 10)
    check(not left, 'left behind:\n  {}', '\n  '.join(left))
