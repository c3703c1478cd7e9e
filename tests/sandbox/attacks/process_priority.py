# family: other processes
# tries: to slow other processes down
# alone: acts
import os

for victim in (int("@BYSTANDER@"), os.getppid()):
    for change in (
        lambda victim: os.setpriority(os.PRIO_PROCESS, victim, 19),
        lambda victim: os.sched_setaffinity(victim, {0}),
        lambda victim: os.sched_setscheduler(victim, os.SCHED_IDLE, os.sched_param(0)),
    ):
        try:
            if victim > 1:
                change(victim)
        except OSError:
            pass
