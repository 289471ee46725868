"""Cases: the manager or the agent is killed, stopped, started again."""
import os
import signal
import time

from world import case, check



@case
def kernels_and_events_outlive_the_managers_death(world):
    with world.session() as living, world.session() as dying:
        world.execute(living, 'x = 41')
        init = world.init_process(dying)
        world.stack.kill_manager()
        os.kill(init, signal.SIGKILL)
        time.sleep(5)  # more than one heartbeat into the void
        check(world.stack.agent.alive(), 'the agent ended')
        world.stack.start_manager()
        world.wait_alive()
        world.wait_terminated(dying)
        # The old client may hold a connection to the dead manager.
        world.new_client()
        living = world.client.Kernel(living.kernel_id)
        check(world.execute(living, 'print(x + 1)').stdout == '42\n', 'the living kernel lost its state')
    world.wait_slots_free()


def survives(world, number):
    with world.session() as kernel:
        world.execute(kernel, 'x = 41')
        before = world.row(kernel)[0]
        world.restart_agent(number)
        console = world.execute(kernel, 'print(x + 1)')
        check(console.stdout == '42\n' and world.row(kernel) == (before, 'RUNNING'), '{!r}; {}', console, world.row(kernel))
        kernel.destroy()
        world.wait_terminated(kernel)
    world.wait_slots_free()


@case
def kernels_survive_an_agent_that_is_stopped_and_started(world):
    survives(world, signal.SIGINT)


@case
def kernels_survive_an_agent_that_is_killed(world):
    survives(world, signal.SIGKILL)


@case
def a_kernel_that_ended_while_the_agent_was_away_is_reported(world):
    with world.session() as kernel:
        init = world.init_process(kernel)
        world.stack.stop_agent(signal.SIGKILL)
        os.kill(init, signal.SIGKILL)
        world.stack.start_agent()
        world.wait_terminated(kernel, 40)
        world.wait_alive()
    world.wait_slots_free()
